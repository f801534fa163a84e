"""The backward pass of dense layers on tensor cores: shapes that meet each of its paths, hard numbers, equal bits.

Layers of every kind are checked in test_cuda_layers.py; float32 comes by three bfloat16 parts unless a rung says FFMA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from made import layer
from test_cuda_split import HARD

from pft_bench.backends import Layer, get
from pft_bench.harness.check.operator import check_layer
from pft_bench.harness.check.oracle import backward, forward

emu = pytest.importorskip("pft_bench._cuda_emu")
pytestmark = pytest.mark.usefixtures("emulator_defaults")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Gradients = tuple[torch.Tensor | None, ...]


def failures(backend: Any, case: Layer) -> list[str]:
    return [str(r) for r in check_layer(backend, case, train=True) if not r.passed]


def gradients(backend: Any, case: Layer, grad_out: torch.Tensor | None = None) -> Gradients:
    out, index, logits, lse = backend.attention_forward(case)
    given = torch.ones_like(out) if grad_out is None else grad_out
    found: Gradients = backend.attention_backward(
        case, given, torch.ones_like(logits) if logits.shape[-1] else None, index, out, lse
    )
    return found


SHAPES: dict[str, dict[str, Any]] = {
    "several blocks of 128": {"tokens": 169, "dim": 8, "topk": 169},
    "several blocks, selection": {"tokens": 144, "dim": 8, "topk": 30},
    "wide values": {"tokens": 36, "dim": 24, "dim_v": 90, "topk": 36},
    "wide keys": {"tokens": 36, "dim": 90, "dim_v": 24, "topk": 36},
    "more keys than queries": {"tokens": 5, "keys": 67, "dim": 40, "bias": False, "topk": 67},
    "more queries than keys": {"tokens": 70, "keys": 11, "dim": 40, "bias": False, "topk": 11},
    "regions": {"windows": 2, "tokens": 64, "dim": 13, "patterns": 2, "topk": 64},
    "one token": {"tokens": 1, "dim": 1, "topk": 1},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_tall_blocks_and_odd_shapes(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block sums the table of a window-head, as in a large batch: it is tall, and its warps' sums join."""
    backend = get("cuda-emu")
    monkeypatch.setattr(type(backend), "bias_row_blocks", lambda *_: 1)
    emu.configure(seed=len(name))
    case = layer(**{"windows": 1, "heads": 1, **SHAPES[name]}, dtype=dtype)
    assert not failures(backend, case)


@pytest.mark.parametrize("limit_kib", [20, 24, 30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_little_shared_memory(dtype: torch.dtype, limit_kib: int) -> None:
    """Fewer rows, one buffer, 32 rows at a time, the table read where it lies."""
    emu.configure(shared_limit=limit_kib << 10)
    case = layer(windows=1, heads=2, tokens=81, dim=40 if dtype.itemsize == 2 else 8, topk=81, dtype=dtype)
    assert not failures(get("cuda-emu"), case)


@pytest.mark.parametrize("topk", [25, 6])
def test_ffma_has_its_own_backward_pass(topk: int) -> None:
    case = layer(windows=2, heads=2, tokens=25, dim=44, dim_v=20, topk=topk, patterns=2)
    assert not failures(get("cuda-emu-ffma"), case)


@pytest.mark.parametrize("rows", [16, 40])
def test_the_table_of_windows_whose_lines_hold_a_tile(rows: int) -> None:
    """32 keys and 16 queries of one line each: a diagonal is one row of the table. 40 queries end in another line."""
    case = layer(windows=1, heads=1, tokens=rows, keys=1024, dim=4, topk=1024)
    got = gradients(get("cuda-emu"), case)[3]
    assert case.bias is not None
    bias = case.bias.double().requires_grad_()
    at, key = torch.arange(rows).view(-1, 1), torch.arange(1024).view(1, -1)
    places = (at // 32 - key // 32 + 31) * 63 + at % 32 - key % 32 + 31
    z = case.scale * case.q.double() @ case.k.double().mT + bias[places].squeeze(-1)
    z.retain_grad()
    (z.softmax(-1) @ case.v.double()).sum().backward()
    assert got is not None
    assert bias.grad is not None
    assert z.grad is not None
    size = torch.zeros_like(bias).index_add_(0, places.flatten(), z.grad.abs().view(-1, 1))
    assert ((got.double() - bias.grad).abs() <= 2.0**-16 * size + 1e-9).all()
    assert bias.grad.abs().max() > 1e-3


# size of values, queries and keys: gradients of logits far above float16's numbers, or far below its normal ones where
# what they are multiplied with makes the gradient of q or k a normal number again
SIZES = {"large": (13, -4, -4), "small, queries": (-14, -5, 5), "small, keys": (-14, 5, -5)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_gradients_of_logits_of_every_size(name: str, dtype: torch.dtype) -> None:
    """Values grow along the keys, by 2^6, or shrink: what a row's gradients are scaled by must follow."""
    v, q, k = (2.0**x for x in SIZES[name])
    case = layer(windows=1, heads=1, tokens=81, dim=16, topk=81, dtype=dtype)
    ramp = (v * 2.0 ** -torch.linspace(0, 6, 81).round()).view(1, 1, 81, 1)
    case = case.with_tensors(v=(case.v.float() * ramp).to(dtype), q=case.q * q, k=case.k * k)
    for turned in (case, case.with_tensors(v=case.v.flip(2))):
        assert not failures(get("cuda-emu"), turned)


@pytest.mark.parametrize("size", [2.0**-20, 2.0**12])
def test_float16_weights_and_gradients_do_not_depend_on_their_size(size: float) -> None:
    """As float32 results, of a layer that selects, gradients of any size are the same but for the factor."""
    case = layer(windows=1, heads=1, tokens=64, dim=16, topk=64, dtype=torch.float16)
    grad_out = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(2)).half()
    small = (grad_out.float() * size).half()
    one, other = (gradients(get("cuda-emu"), case, g) for g in (small.float() / size, small))
    assert one[3] is not None
    assert other[3] is not None
    assert torch.allclose(one[3] * size, other[3], rtol=1e-5, atol=1e-7 * size)


@pytest.mark.parametrize(
    "name", [name for name in HARD if name != "1e38"]
)  # grad_out . v is not finite there
def test_float32_gradients_are_as_exact_as_by_ffma(name: str) -> None:
    """Every check that FFMA passes; mean and largest error relative to the bounds beside FFMA's."""
    case = HARD[name](layer(windows=1, heads=1, tokens=64, dim=40, topk=64, patterns=1, seed=3))
    grad_out = torch.randn(case.v.shape, generator=torch.Generator().manual_seed(1))
    exact = backward(case, forward(case, None), grad_out, None)
    errors, failed = {}, {}
    for rung in ("ffma", "split"):
        backend = get(f"cuda-emu-{rung}")
        failed[rung] = {one.split(":")[0] for one in failures(backend, case)}
        got = gradients(backend, case, grad_out)
        errors[rung] = [
            ((x.double() - y.value).abs() / y.bound).flatten()
            for x, y in zip(got[:3], (exact.q, exact.k, exact.v), strict=True)
            if x is not None
        ]
    assert failed["split"] <= failed["ffma"]
    for split, ffma in zip(errors["split"], errors["ffma"], strict=True):
        assert split.mean() <= 1.5 * ffma.mean() + 1e-4
        assert split.max() <= 2 * ffma.max() + 1e-3


def sparse_case(name: str = "as drawn") -> Layer:
    return HARD[name](layer(windows=1, heads=1, tokens=36, dim=40, candidates=20, topk=8, seed=3))


@pytest.mark.parametrize("name", [name for name in HARD if name != "1e38"])
def test_gradients_of_sparse_float32_layers_are_as_exact_as_by_ffma(name: str) -> None:
    case = sparse_case(name)
    grad_out = torch.randn(case.v.shape, generator=torch.Generator().manual_seed(1))
    errors = {}
    for rung in ("ffma", "split"):
        backend = get(f"cuda-emu-{rung}")
        out, index, logits, lse = get("cuda-emu-ffma").attention_forward(case)
        handed = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
        place = torch.zeros(1, 1, 36, 36, dtype=torch.float64).scatter(-1, index.long(), handed.double())
        exact = backward(case, forward(case, index), grad_out, place)
        got = backend.attention_backward(case, grad_out, handed, index, out, lse)
        wanted = (exact.q, exact.k, exact.v, exact.bias, exact.logits)
        errors[rung] = [
            ((x.double() - y.value).abs() / y.bound).flatten()
            for x, y in zip(got, wanted, strict=True)
            if x is not None and y is not None
        ]
    for split, ffma in zip(errors["split"], errors["ffma"], strict=True):
        assert split.max() <= 1
        assert split.mean() <= 1.5 * ffma.mean() + 1e-2  # of the bound: weights are powers of two, not expf
        assert split.max() <= 2 * ffma.max() + 1e-2


def test_what_is_not_finite_reaches_the_gradients_of_a_sparse_layer_as_by_ffma() -> None:
    case = sparse_case()
    out, index, logits, lse = get("cuda-emu-ffma").attention_forward(case)
    kept = index[0, 0, 4, 2].long()
    for value in (math.nan, math.inf):
        for field, row in (("q", 7), ("k", int(kept)), ("v", int(kept))):
            changed = getattr(case, field).clone()
            changed[..., row, 2] = value
            bad = case.with_tensors(**{field: changed})
            one, other = (
                get(f"cuda-emu-{rung}").attention_backward(
                    bad, case.v, torch.ones_like(logits), index, out, lse
                )
                for rung in ("split", "ffma")
            )
            assert not all(x.isfinite().all() for x in one if x is not None)
            for x, y in zip(one, other, strict=True):
                assert x is not None
                assert y is not None
                assert torch.equal(x.isfinite(), y.isfinite())
            for x, y in zip(one[3:], other[3:], strict=True):  # what the logits' gradient itself makes
                assert torch.equal(x.isnan(), y.isnan())


def test_sparse_gradients_take_tiles_where_many_entries_are_listed_and_kept(
    launched: Callable[..., list[str]],
) -> None:
    """A quarter of the keys together; the rung always, but with more channels of v than registers hold."""
    taken = {}
    for rung in ("", "-split", "-ffma", "-gather"):
        for topk, dim_v in ((23, 8), (24, 8), (24, 41)):
            case = layer(windows=1, heads=1, tokens=256, dim=8, dim_v=dim_v, candidates=40, topk=topk)
            kept, rows = torch.zeros(1, 1, 256, topk, dtype=torch.int16), torch.zeros(1, 1, 256)
            given = (torch.zeros(1, 1, 256, dim_v), None, kept, torch.zeros(1, 1, 256, dim_v), rows)
            names = launched(lambda: get(f"cuda-emu{rung}").attention_backward(case, *given))  # noqa: B023
            assert ("attention_backward_tiled_split" in names) == ("sddmm_resident" not in names)
            taken.setdefault(rung, []).append("attention_backward_tiled_split" in names)
    assert taken == {
        "": [False, True, False], "-split": [True, True, False], "-ffma": [False] * 3, "-gather": [False] * 3
    }  # fmt: skip


def test_subnormal_gradients_stay_within_what_parts_may_lose() -> None:
    """Gradients of logits below 2^-110 meet keys so large that their product is a normal number."""
    case = layer(windows=1, heads=1, tokens=16, dim=8, topk=16, seed=3)
    case = case.with_tensors(q=case.q / 1e5, k=case.k * 1e5)
    grad_out = 1e-37 * torch.randn(case.v.shape, generator=torch.Generator().manual_seed(1))
    exact = backward(case, forward(case, None), grad_out, None)
    got = gradients(get("cuda-emu-split"), case, grad_out)
    for x, y in zip(got[:3], (exact.q, exact.k, exact.v), strict=True):
        assert x is not None
        assert ((x.double() - y.value).abs() <= y.bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_in_every_order_of_execution(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get("cuda-emu")
    monkeypatch.setattr(type(backend), "bias_row_blocks", lambda *_: 1)
    for topk in (64, 9):
        case = layer(windows=1, heads=1, tokens=64, dim=8, topk=topk, dtype=dtype)
        found = []
        for seed in range(3):
            emu.configure(seed=seed)
            found.append(gradients(backend, case))
        for other in found[1:]:
            assert all(x is None or torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_is_not_finite_spoils_its_own_gradient_alone(dtype: torch.dtype) -> None:
    """Of the queries' gradients; a key's takes every query in. float32 as by FFMA."""
    case = layer(windows=1, heads=1, tokens=36, dim=8, topk=36, dtype=dtype)
    clean = gradients(get("cuda-emu"), case)
    for value in (math.nan, math.inf):
        q = case.q.clone()
        q[..., 7, 2] = value
        bad = case.with_tensors(q=q)
        got = gradients(get("cuda-emu"), bad)
        assert got[0] is not None
        assert clean[0] is not None
        others = torch.arange(36) != 7
        assert torch.equal(got[0][..., others, :], clean[0][..., others, :])
        assert not got[0][..., 7, :].isfinite().any()
        assert not any(x.isfinite().any() for x in got[1:3] if x is not None)
        if dtype == torch.float32:
            for x, y in zip(got[:3], gradients(get("cuda-emu-ffma"), bad)[:3], strict=True):
                assert x is not None
                assert y is not None
                assert torch.equal(x.isnan(), y.isnan())


def test_rungs_of_float32_decide_the_backward_pass_too(launched: Callable[..., list[str]]) -> None:
    """Layers that keep everything, and the dense part of those that select."""
    for topk in (25, 6):
        whole, half = (layer(tokens=25, dim=8, topk=topk, dtype=d) for d in (torch.float32, torch.float16))
        for name, infix, case in (
            ("cuda-emu", "_split", whole),
            ("cuda-emu-split", "_split", whole),
            ("cuda-emu-ffma", "", whole),
            ("cuda-emu", "", half),
        ):
            names = launched(partial(gradients, get(name), case))
            dense = [n for n in names if n.startswith("attention_backward_dense")]
            assert dense[:2] == [f"attention_backward_dense{infix}_{side}" for side in ("queries", "keys")]
