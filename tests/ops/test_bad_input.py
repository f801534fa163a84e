"""Every public argument, every way to get it wrong: an error that names the argument, before anything is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from made import BACKENDS, device_of, index, layer, normal, register_broken

import pft_bench
from pft_bench import BackendUnavailable, ChainState
from pft_bench.backends import get

Errors = (ValueError, TypeError)


@pytest.fixture(autouse=True)
def _no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong argument must be found before a kernel is called."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a kernel was called with a wrong argument")

    for name in BACKENDS:
        for method in ("sddmm", "spmm", "spmm_transpose", "attention_forward"):
            monkeypatch.setattr(type(get(name)), method, forbidden)


# B = 2, N = 5, M = 7, D = 3, K = 4
def arguments(op: str) -> dict[str, Any]:
    q, k, a = normal(2, 5, 3), normal(2, 7, 3), normal(2, 5, 4)
    places = index(2, 5, 7, 4)
    if op == "sddmm":
        return {"q": q, "k": k, "index": places}
    if op == "spmm":
        return {"a": a, "v": k, "index": places}
    return {"a": a, "x": q, "index": places, "num_keys": 7}


def changed(**values: Any) -> Any:
    return values


FLOATS = {"sddmm": ("q", "k"), "spmm": ("a", "v"), "spmm_transpose": ("a", "x")}
BAD_TENSORS = {
    "not a tensor": (lambda t: t.tolist(), TypeError),
    "None": (lambda t: None, TypeError),
    "an array": (lambda t: t.numpy(), TypeError),
    "one dimension too few": (lambda t: t[0], ValueError),
    "one dimension too many": (lambda t: t.unsqueeze(0), ValueError),
    "integers": (lambda t: t.to(torch.int32), ValueError),
    "booleans": (lambda t: t > 0, ValueError),
    "complex": (lambda t: t.to(torch.complex64), ValueError),
    "sparse layout": (lambda t: t.to_sparse(), ValueError),
}
CASES = [(op, name, what) for op, names in FLOATS.items() for name in names for what in BAD_TENSORS]


@pytest.mark.parametrize(("op", "name", "what"), CASES, ids=["-".join(case) for case in CASES])
def test_products_want_floating_tensors(op: str, name: str, what: str) -> None:
    change, error = BAD_TENSORS[what]
    values = arguments(op)
    values[name] = change(values[name])
    with pytest.raises(error, match=rf"^{name} must be "):
        getattr(pft_bench, op)(**values)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("op", FLOATS)
def test_products_want_one_dtype_and_device(op: str, backend: str) -> None:
    left, right = FLOATS[op]
    for name, value, message in (
        (right, lambda t: t.double(), rf"{right} must be torch.float32 like {left}"),
        (right, lambda t: t.to("meta"), rf"{right} must be on cpu like {left}"),
        (left, lambda t: t.to("meta"), rf"{right} must be on meta like {left}"),
        ("index", lambda t: t.to("meta"), rf"index must be on cpu like {left}"),
    ):
        values = arguments(op)
        values[name] = value(values[name])
        with pytest.raises(Errors, match=message):
            getattr(pft_bench, op)(**values, backend=backend)


SHAPES = [
    ("sddmm", {"k": normal(3, 7, 3)}, "k must be"),
    ("sddmm", {"k": normal(2, 7, 4)}, "k must be"),
    ("sddmm", {"k": normal(1, 7, 3)}, "k must be"),
    ("sddmm", {"index": index(3, 5, 7, 4)}, "index must be"),
    ("sddmm", {"index": index(2, 6, 7, 4)}, "index must be"),
    ("sddmm", {"q": normal(2, 5, 0), "k": normal(2, 7, 0)}, "the head_dim D of q must be at least 1"),
    ("spmm", {"v": normal(3, 7, 3)}, "v must be"),
    ("spmm", {"a": normal(2, 5, 3)}, "index must be"),
    ("spmm", {"a": normal(2, 6, 4)}, "index must be"),
    ("spmm", {"index": index(2, 5, 7, 5)}, "index must be"),
    ("spmm", {"v": normal(2, 7, 0)}, "the head_dim D of v must be at least 1"),
    ("spmm_transpose", {"x": normal(3, 5, 3)}, "x must be"),
    ("spmm_transpose", {"x": normal(2, 4, 3)}, "x must be"),
    ("spmm_transpose", {"x": normal(2, 5, 0)}, "the head_dim D of x must be at least 1"),
    ("spmm_transpose", {"index": index(2, 5, 7, 3)}, "index must be"),
    ("spmm_transpose", {"num_keys": -1}, "num_keys must be an integer >= 0"),
    ("spmm_transpose", {"num_keys": 7.0}, "num_keys must be an integer"),
    ("spmm_transpose", {"num_keys": True}, "num_keys must be an integer"),
    ("spmm_transpose", {"num_keys": torch.tensor(7)}, "num_keys must be an integer"),
    ("spmm_transpose", {"num_keys": 6}, "index must hold distinct keys in 0..5, got 6"),
    ("spmm_transpose", {"num_keys": 0}, "index must hold distinct keys"),
]


@pytest.mark.parametrize(("op", "values", "message"), SHAPES)
def test_products_want_fitting_shapes(op: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(Errors, match=message):
        getattr(pft_bench, op)(**(arguments(op) | values))


@pytest.mark.parametrize(
    "bad",
    [
        [[0, 1]],
        None,
        torch.zeros(2, 5),
        torch.zeros(2, 5, 4),
        torch.zeros(2, 5, 4, dtype=torch.bool),
        torch.zeros(2, 5, 4, dtype=torch.uint8),
        torch.zeros(2, 5, 4, dtype=torch.int8),
        torch.zeros(5, 4, dtype=torch.int32),
        torch.zeros(2, 5, 4, dtype=torch.int32).to_sparse(),
    ],
    ids=["list", "None", "rank", "float", "bool", "uint8", "int8", "2-D", "sparse layout"],
)
@pytest.mark.parametrize("op", FLOATS)
def test_index_must_be_a_strided_integer_tensor(op: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"index must be \[B, N, K\] int16/int32/int64"):
        getattr(pft_bench, op)(**(arguments(op) | {"index": bad}))


FAULTS = {
    "first entry negative": ((0, 0, 0), -1, "outside"),
    "first entry too large": ((0, 0, 0), 7, "outside"),
    "last entry negative": ((1, 4, 3), -1, "outside"),
    "last entry too large": ((1, 4, 3), 7, "outside"),
    "an entry in the middle": ((0, 3, 2), 30000, "outside"),
    "smallest int16": ((1, 0, 1), -32768, "outside"),
}


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("place", "value", "problem"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_index_outside_the_keys_is_named_with_its_place(
    backend: str, op: str, place: tuple[int, ...], value: int, problem: str, dtype: torch.dtype
) -> None:
    device = device_of(backend)
    values = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments(op).items()}
    values["index"] = values["index"].to(dtype)
    values["index"][place] = value
    message = rf"index must hold distinct keys in 0\.\.6, got {value} at \[{', '.join(map(str, place))}\]"
    with pytest.raises(ValueError, match=message):
        getattr(pft_bench, op)(**values, backend=backend)


@pytest.mark.parametrize("value", [2**31, 2**32, 2**32 + 1, 2**40, 2**63 - 1, -(2**63), -(2**32)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_int64_index_beyond_int32_does_not_wrap_to_a_valid_key(backend: str, value: int) -> None:
    device = device_of(backend)
    values = {name: tensor.to(device) for name, tensor in arguments("sddmm").items()}
    values["index"] = torch.tensor([1, 2, 3, 4], device=device).repeat(2, 5, 1)
    values["index"][1, 2, 3] = value
    with pytest.raises(ValueError, match=rf"got {value} at \[1, 2, 3\]: it is outside"):
        pft_bench.sddmm(**values, backend=backend)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("row", "entries", "again"),
    [
        ((0, 0), [3, 3, 1, 2], 3),
        ((1, 4), [0, 1, 2, 0], 0),
        ((0, 2), [6, 5, 4, 6], 6),
        ((1, 0), [2, 2, 2, 2], 2),
    ],
)
@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates_in_a_row_are_named(
    backend: str, op: str, row: tuple[int, int], entries: list[int], again: int, dtype: torch.dtype
) -> None:
    device = device_of(backend)
    values = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments(op).items()}
    values["index"] = values["index"].to(dtype)
    values["index"][row] = torch.tensor(entries, device=device, dtype=dtype)
    message = rf"got {again} at \[{row[0]}, {row[1]}, \d\]: it occurs twice in its row"
    with pytest.raises(ValueError, match=message):
        getattr(pft_bench, op)(**values, backend=backend)


def test_more_kept_entries_than_keys_cannot_be_distinct() -> None:
    values = arguments("sddmm") | {"index": torch.arange(8).repeat(2, 5, 1)}
    with pytest.raises(ValueError, match=r"got 7 at \[0, 0, 7\]: it is outside"):
        pft_bench.sddmm(**values)


def test_any_entry_is_an_error_where_there_are_no_keys() -> None:
    with pytest.raises(ValueError, match="index must hold distinct keys"):
        pft_bench.sddmm(normal(2, 5, 3), normal(2, 0, 3), index(2, 5, 7, 4))


# -- backends ----------------------------------------------------------------------------------------------------------


def call_with_backend(op: str, backend: Any) -> None:
    if op == "progressive_attention":
        made = layer()
        pft_bench.progressive_attention(made.q, made.k, made.v, topk=3, backend=backend)
    else:
        getattr(pft_bench, op)(**arguments(op), backend=backend)


@pytest.mark.parametrize("backend", ["", "CPU", "cpu ", "numpy", None, 3, ["cpu"]])
@pytest.mark.parametrize("op", [*FLOATS, "progressive_attention"])
def test_unknown_backend_lists_the_known_ones(op: str, backend: Any) -> None:
    with pytest.raises(ValueError, match=r"backend must be 'auto' or one of .*'dense'.*'reference'"):
        call_with_backend(op, backend)


@pytest.mark.parametrize("op", [*FLOATS, "progressive_attention"])
def test_unavailable_backend_says_why_and_nothing_falls_back(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_broken(monkeypatch, "the flux is off; switch it on")
    with pytest.raises(BackendUnavailable, match="'broken' is not available: the flux is off; switch it on"):
        call_with_backend(op, "broken")
    row = {info.name: info for info in pft_bench.backends()}["broken"]
    assert not row.available
    assert row.reason == "the flux is off; switch it on"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dtype_that_a_backend_has_no_kernel_for_is_an_error(backend: str) -> None:
    missing = torch.float8_e4m3fn
    q, k = normal(2, 5, 3).to(missing), normal(2, 7, 3).to(missing)
    with pytest.raises(TypeError, match=f"backend '{backend}' takes .* got torch.float8_e4m3fn"):
        pft_bench.sddmm(q.to(device_of(backend)), k.to(device_of(backend)), index(2, 5, 7, 4).to(
            device_of(backend)), backend=backend)  # fmt: skip


def test_auto_says_when_nothing_fits() -> None:
    meta = {name: tensor.to("meta") for name, tensor in arguments("sddmm").items()}
    with pytest.raises(BackendUnavailable, match=r"no backend takes torch\.float32 tensors on meta"):
        pft_bench.sddmm(**meta)


# -- progressive_attention ---------------------------------------------------------------------------------------------
# W = 2, H = 3, N = M = 16, D = 13


def attention(**values: Any) -> Any:
    made = layer()
    given = {"q": made.q, "k": made.k, "v": made.v, "bias": made.bias, "topk": 5} | values
    return pft_bench.progressive_attention(**given)


@pytest.mark.parametrize("what", BAD_TENSORS)
@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_attention_wants_floating_tensors(name: str, what: str) -> None:
    if name == "bias" and what == "None":
        return  # no bias is fine
    change, error = BAD_TENSORS[what]
    with pytest.raises(error, match=rf"^{name} must be "):
        attention(**{name: change(getattr(layer(), name))})


NEW = normal(2, 3, 16, 13)
REGION = torch.zeros(2, 16, dtype=torch.uint8)
ATTENTION = [
    ({"k": NEW.double()}, "k must be torch.float32 like q"),
    ({"v": NEW.half()}, "v must be torch.float32 like q"),
    ({"k": NEW.to("meta")}, "k must be on cpu like q"),
    ({"v": NEW.to("meta")}, "v must be on cpu like q"),
    ({"bias": normal(49, 3).to("meta")}, "bias must be on cpu like q"),
    ({"region": REGION.to("meta")}, "region must be on cpu like q"),
    ({"k": normal(3, 3, 16, 13)}, "k must be"),
    ({"k": normal(2, 1, 16, 13)}, "k must be"),
    ({"k": normal(2, 3, 16, 12)}, "k must be"),
    ({"v": normal(2, 3, 15, 13)}, "v must be"),
    ({"v": normal(1, 3, 16, 13)}, "v must be"),
    ({"q": normal(2, 3, 16, 0), "k": normal(2, 3, 16, 0)}, "the head_dim D of q must be at least 1"),
    ({"v": normal(2, 3, 16, 0)}, "the head_dim Dv of v must be at least 1"),
    (
        {"k": normal(2, 3, 0, 13), "v": normal(2, 3, 0, 13), "bias": None},
        "number of keys M must be at least 1",
    ),
    ({"bias": normal(48, 3)}, r"bias must be \[\(2w-1\)\^2, H\] = \[49, 3\]"),
    ({"bias": normal(49, 1)}, r"bias must be .* = \[49, 3\], got .* \(H = 3, N = 16 by q \[W, H, N, D\]\)$"),
    ({"q": normal(2, 3, 15, 13)}, "bias needs windows of w x w tokens"),
    ({"k": normal(2, 3, 15, 13), "v": normal(2, 3, 15, 13)}, "bias needs windows of w x w tokens"),
    ({"region": [[0] * 16]}, r"region must be \[P, N\] uint8"),
    ({"region": REGION.int()}, r"region must be \[P, N\] uint8"),
    ({"region": REGION[0]}, r"region must be \[P, N\] uint8"),
    ({"region": REGION[:, :15]}, "region must be"),
    ({"region": REGION[:0]}, "region must be .* P a divisor of the 2 windows"),
    ({"region": REGION.repeat(2, 1)}, "region must be .* P a divisor of the 2 windows"),
    ({"topk": 0}, "topk must be an integer >= 1, got int 0"),
    ({"topk": -1}, "topk must be an integer >= 1"),
    ({"topk": True}, "topk must be an integer >= 1, got bool True"),
    ({"topk": 3.0}, "topk must be an integer >= 1, got float 3.0"),
    ({"topk": "3"}, "topk must be an integer >= 1"),
    ({"topk": None}, "topk must be an integer >= 1"),
    ({"scale": "1"}, "scale must be a finite number"),
    ({"scale": float("nan")}, "scale must be a finite number"),
    ({"scale": float("inf")}, "scale must be a finite number"),
    ({"scale": torch.ones(2)}, "scale must be a finite number"),
    ({"state": "dense"}, "state must be a ChainState or None"),
    ({"state": (index(6, 16, 16, 4), NEW)}, "state must be a ChainState or None, got a tuple of 2$"),
    (
        {"state": (NEW, ChainState())},
        r"got a tuple of 2: `out, state = progressive_attention\(\.\.\.\)` returns both$",
    ),
    ({"q": [normal(2, 3, 16, 5)]}, "got a list of 1$"),
    ({"topk": torch.nn.Sequential(torch.nn.Linear(2, 2))}, "got an object of type Sequential$"),
]


@pytest.mark.parametrize(("values", "message"), ATTENTION, ids=[message for _, message in ATTENTION])
def test_attention_names_the_wrong_argument(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Errors, match=message):
        attention(**values)


def state_of(**values: Any) -> ChainState:
    """A state as `progressive_attention` returns it, without running a kernel."""
    tokens, keys = values.get("tokens", 16), values.get("keys", 16)
    windows, heads = values.get("windows", 2), values.get("heads", 3)
    dtype = values.get("dtype", torch.float32)
    if values.get("dense"):
        return ChainState(
            queries=normal(windows, heads, tokens, 13, dtype=dtype),
            keys=normal(windows, heads, keys, 13, dtype=dtype),
            scale=13**-0.5,
            masked_layers=values.get("masked_layers", 0),
        )
    places = index(windows * heads, tokens, keys, 5).view(windows, heads, tokens, 5)
    return ChainState.sparse(places, normal(windows, heads, tokens, 5, dtype=dtype), keys)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windows": 4}, r"state must come from a layer with \[W, H, N\] = \[2, 3, 16\] and M = 16"),
        ({"windows": 1}, "state must come from a layer"),
        ({"heads": 1}, "state must come from a layer"),
        ({"tokens": 9}, "state must come from a layer"),
        ({"keys": 25}, "state must come from a layer .* of 25 keys"),  # its index would read past the keys
        ({"keys": 9}, "state must come from a layer .* of 9 keys"),
        ({"dtype": torch.float64}, "state must"),
        ({"dtype": torch.float16}, "state must"),
    ],
    ids=str,
)
def test_a_state_of_another_layer_is_an_error(values: dict[str, Any], message: str, dense: bool) -> None:
    with pytest.raises(Errors, match=message):
        attention(state=state_of(dense=dense, **values), bias=None)


def test_a_state_on_another_device_is_an_error() -> None:
    given = state_of()
    for moved in (
        ChainState(index=given.index.to("meta"), logits=given.logits, num_keys=16),
        ChainState(index=given.index, logits=given.logits.to("meta"), num_keys=16),
        ChainState(queries=NEW.to("meta"), keys=NEW.to("meta"), scale=13**-0.5),
    ):
        with pytest.raises(ValueError, match="state must be on cpu like q"):
            attention(state=moved)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": None},
        {"logits": normal(2, 3, 16, 4)},
        {"index": index(6, 16, 16, 5, dtype=torch.int64).view(2, 3, 16, 5)},
        {"num_keys": 0},
    ],
    ids=["no logits", "other logits", "int64 index", "unknown keys"],
)
def test_a_state_patched_together_is_an_error(changes: dict[str, Any]) -> None:
    given = state_of()
    values = {"index": given.index, "logits": given.logits, "num_keys": 16} | changes
    with pytest.raises(Errors, match="state must"):
        attention(state=ChainState(**values))


@pytest.mark.parametrize("value", [-1, 16, 3])
def test_a_state_made_by_hand_holds_distinct_keys_in_range(value: int) -> None:
    given = state_of()
    places = given.index.clone()
    places[..., 0], places[..., 1] = value, 3
    for state in (
        ChainState(index=places, logits=given.logits, num_keys=16),
        dataclasses.replace(given, index=places),
    ):
        with pytest.raises(ValueError, match=r"index must hold distinct keys in 0\.\.15"):
            attention(state=state, bias=None)


def test_dense_layers_of_a_chain_share_their_scale_and_their_mask() -> None:
    with pytest.raises(
        ValueError, match=r"scale must be the same in all dense layers of a chain, got 0\.5 after"
    ):
        attention(state=state_of(dense=True), scale=0.5)
    with pytest.raises(ValueError, match="region must be given to every dense layer of a chain that had one"):
        attention(state=state_of(dense=True, masked_layers=1))


PLACES = index(6, 16, 16, 5).view(2, 3, 16, 5)
LOGITS = normal(2, 3, 16, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([1], LOGITS, 16), "index must be"),
        ((PLACES.float(), LOGITS, 16), "index must be"),
        ((PLACES[0], LOGITS[0], 16), "index must be"),
        ((PLACES, [1.0], 16), "logits must be"),
        ((PLACES, PLACES, 16), "logits must be"),
        ((PLACES, LOGITS[..., :4], 16), "logits must be"),
        ((PLACES, LOGITS.to("meta"), 16), "logits must be on cpu like index"),
        ((PLACES, LOGITS, 0), "num_keys must be an integer >= 1"),
        ((PLACES, LOGITS, 16.0), "num_keys must be an integer >= 1"),
        ((PLACES, LOGITS, 15), "index must hold distinct keys in 0..14, got 15"),
        ((PLACES // 2, LOGITS, 16), "occurs twice in its row"),
        ((PLACES - 1, LOGITS, 16), "got -1"),
    ],
)
def test_a_state_built_by_hand_is_checked(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Errors, match=message):
        ChainState.sparse(*values)
