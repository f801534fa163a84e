"""Attention layers by the CUDA kernels, in the emulator with its race detector, against float64.

The bounds are those of `pft_bench.harness.check` (gamma_n); nothing here is tolerated by guess.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from bad_rows import check_bad_rows
from emulated import DTYPES, LAYERS, assert_passed, in_turn, layer, tiles_of

import pft_bench
from pft_bench import reference
from pft_bench.backends import Layer, get
from pft_bench.harness.check.bounds import gamma, output_rounding
from pft_bench.harness.check.operator import check_layer

emu = pytest.importorskip("pft_bench._cuda_emu")
pytestmark = pytest.mark.usefixtures("emulator_defaults")


@pytest.mark.parametrize(("name", "dtype", "seed"), in_turn(LAYERS))
def test_layers_and_their_gradients(backend: Any, name: str, dtype: torch.dtype, seed: int) -> None:
    if "candidates" in LAYERS[name]:
        backend = backend.on_rung("gather")  # tiles are below
    emu.configure(seed=seed)
    assert_passed(check_layer(backend, layer(**LAYERS[name], dtype=dtype, seed=seed), train=True))


# rows of several warps and blocks, a last tile that is not full, more than one word of keys, ranges of keys
TILED = {
    "sparse": LAYERS["sparse"],
    "nothing dropped": LAYERS["sparse, nothing dropped"],
    "one candidate": LAYERS["sparse, one candidate"],
    "no bias": LAYERS["sparse, no bias"],
    "several words": LAYERS["sparse, more than a warp"],
    "all keys": {"candidates": 49, "topk": 20, "side": 7, "windows": 1, "dim": 20},
    "wide values": {"candidates": 20, "topk": 9, "dim": 24, "dim_v": 72, "heads": 1},
}


@pytest.mark.parametrize(("name", "dtype", "seed"), in_turn(TILED))
def test_sparse_layers_on_tensor_core_tiles(backend: Any, name: str, dtype: torch.dtype, seed: int) -> None:
    """What long lists of candidates take, here at any length, forward and backward."""
    emu.configure(seed=seed)
    backend, train = tiles_of(backend, dtype), dtype != torch.float32 or seed == 0
    assert_passed(check_layer(backend, layer(**TILED[name], dtype=dtype, seed=seed), train=train))


def listed_in_stretches(side: int = 12) -> Layer:
    """A window whose lists have more entries in a stretch of keys than a warp has lanes, and some have none."""
    n = side * side
    case = layer(windows=1, heads=2, side=side, dim=33, dim_v=9, candidates=40, topk=17)
    assert case.index is not None
    index = case.index.clone()
    index[0, 0, 1] = torch.arange(40)
    index[0, 0, 2] = torch.arange(n - 40, n)
    index[0, 1, 70] = torch.cat([torch.arange(33), torch.arange(n - 7, n)])
    return case.with_tensors(index=index)


@pytest.mark.parametrize(("limit_kib", "wide"), [(40, True), (48, False), (99, True)])
def test_float32_tiles_in_stretches_of_keys(backend: Any, limit_kib: int, wide: bool) -> None:
    """With little shared memory fewer rows and keys at a time, and the bias table where it lies; the same bits."""
    case = listed_in_stretches()
    assert case.index is not None
    if wide:
        case = case.with_tensors(index=case.index.int())
    backend = backend.on_rung("split")
    emu.configure(seed=limit_kib, shared_limit=limit_kib << 10)
    assert_passed(check_layer(backend, case, train=wide))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("candidates", [None, 36], ids=["dense", "tiles"])
def test_weights_keep_both_their_parts(backend: Any, dtype: torch.dtype, candidates: int | None) -> None:
    """Tensor cores take a weight in two 16-bit parts; where values cancel, output rounding hides neither."""
    case = layer(
        windows=1, heads=1, side=6, dim=16, dim_v=40, topk=36, candidates=candidates, bias=False, dtype=dtype
    )
    q = (
        case.q[:, :, :1].expand_as(case.q).contiguous()
    )  # all rows alike, so that one V cancels in all of them
    logits = case.scale * (q[0, 0, 0].double() @ case.k[0, 0].double().T)
    if candidates is not None:
        assert case.logits is not None
        case = case.with_tensors(logits=torch.zeros_like(case.logits))
        backend = backend.on_rung("tiles")
    v = 256 * case.v  # sums far above float16's subnormal numbers
    for _ in range(3):
        v = (v.double() - logits.softmax(-1) @ v.double()).to(dtype)
    case = case.with_tensors(q=q, v=v)
    weights, exact_v = logits.softmax(-1), v[0, 0].double()
    limit = 4 * gamma(36, 2.0**-24) * (weights @ exact_v.abs()) + output_rounding(weights @ exact_v, dtype)
    one_part = weights.to(dtype).double() @ exact_v
    assert (
        (one_part - weights @ exact_v).abs() > 2 * limit
    ).sum() >= 10  # of 40 columns: a lost part would show
    out = backend.attention_forward(case)[0]
    assert ((out[0, 0].double() - weights @ exact_v).abs() <= limit).all()


def test_long_lists_of_candidates_take_tiles(backend: Any) -> None:
    """A twentieth of the keys; float32: what is listed and kept a quarter. Others gather, and too many 16-bit keys."""
    taken = {}
    for dtype in DTYPES:
        for side, candidates in ((16, 12), (16, 13), (16, 54), (16, 55), (33, 264)):
            emu.configure(dry=True)
            emu.take_dry_launches()
            backend.attention_forward(
                layer(side=side, windows=1, candidates=candidates, topk=9, dtype=dtype, dim=40)
            )
            (launch,) = emu.take_dry_launches()
            taken[str(dtype)[6:], candidates] = launch[0].removeprefix("attention_forward_")
    half = {12: "sparse", 13: "tiled", 54: "tiled", 55: "tiled", 264: "sparse"}
    whole = {12: "sparse", 13: "sparse", 54: "sparse", 55: "tiled_split", 264: "tiled_split"}
    assert taken == {
        (str(dtype)[6:], candidates): kernel
        for dtype in DTYPES
        for candidates, kernel in (whole if dtype == torch.float32 else half).items()
    }
    case = layer(side=14, windows=1, heads=1, candidates=193, topk=9, dtype=torch.float16, dim=40)
    emu.configure(shared_limit=15 << 10)
    assert_passed(check_layer(backend, case, train=False))
    backend = backend.on_rung("tiles")
    with pytest.raises(RuntimeError, match="attention_forward"):
        backend.attention_forward(case)
    for limit_kib in (26, 48):  # without and with the bias table
        emu.configure(shared_limit=limit_kib << 10)
        assert_passed(check_layer(backend, case, train=False))
    case = layer(candidates=12, topk=5)
    with pytest.raises(RuntimeError, match="attention_forward"):
        backend.attention_forward(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("topk", [16, 5])
@pytest.mark.parametrize("kernel", ["dense", "gather", "tiles"])
def test_a_bad_query_row_spoils_its_own_row_alone(
    backend: Any, kernel: str, topk: int, dtype: torch.dtype
) -> None:
    if kernel != "dense":
        backend = tiles_of(backend, dtype) if kernel == "tiles" else backend.on_rung(kernel)
    candidates = None if kernel == "dense" else 9
    check_bad_rows(backend, layer(windows=1, side=4, dim=8, topk=topk, candidates=candidates, dtype=dtype))


@pytest.mark.parametrize(("name", "rung"), [("selection", "ffma"), ("sparse", "gather"), ("sparse", "split")])
def test_ties_keep_the_first_positions(backend: Any, name: str, rung: str) -> None:
    case = layer(**{**LAYERS[name], "ties": True, "bias": False, "dim": 16})
    backend = backend.on_rung(rung)
    _, new_index, new_logits, _ = backend.attention_forward(case)
    expected = torch.arange(25).expand(2, 2, 25, 25) if case.index is None else case.index
    assert torch.equal(new_index.long(), expected[..., : case.topk].long())
    assert not new_logits.any()


def hard_rows(count: int) -> torch.Tensor:
    """Rows of logits [7, count] on which guessing a threshold by the normal distribution goes wrong."""
    g = torch.Generator().manual_seed(count)
    x = torch.randn((7, count), generator=g)
    x[1] = (x[1] * 2).round()  # many ties, also with zeros of both signs
    x[1, ::2] *= -1
    x[2, 3] = 3e38  # one far away: mean and variance say nothing
    x[3] = 1e-3 * x[3].exp().exp()  # a heavy tail
    x[4] = 1.0 + 2.0**-23 * torch.randint(0, 9, (count,), generator=g)  # neighbours in float32
    x[5] = -1e30 * x[5].abs()
    x[6, 1:] = x[6, 0]  # all alike
    return x


@pytest.mark.parametrize("count", [20, 60, 200, 300, 1100])
def test_selection_of_hard_rows(backend: Any, count: int) -> None:
    """Rows in registers of each number and in memory: the same set, with the same ties, as by sorting."""
    x = hard_rows(count)
    for topk in (1, count // 4, count // 2 + 1, count - 1):
        expected = reference.kept_positions(x, topk)
        # a query of zeros and a one picks its row of logits exactly
        q, k = torch.eye(7).view(1, 1, 7, 7), x.T.contiguous().view(1, 1, count, 7)
        v = torch.ones(1, 1, count, 4)
        dense = Layer(q, k, v, None, None, None, None, 1.0, 0.0, topk)
        assert torch.equal(backend.attention_forward(dense)[1][0, 0].long(), expected)
        logits = x.clone()
        logits[5, count // 2 + 1 :] = -math.inf
        expected = reference.kept_positions(logits, topk)
        index = torch.arange(count, dtype=torch.int16).expand(1, 1, 7, count).contiguous()
        zero = torch.zeros_like(k)
        sparse = Layer(q, zero, v, None, None, index, logits.view(1, 1, 7, count), 1.0, 0.0, topk)
        for rung in ("gather", "split")[: 1 + (count <= 300)]:  # 32 rows of 1100 candidates fit nowhere
            assert torch.equal(backend.on_rung(rung).attention_forward(sparse)[1][0, 0].long(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layer_with_keys_in_pieces(backend: Any, dtype: torch.dtype) -> None:
    """A window-head that does not fit into shared memory: keys and columns of V pass through it."""
    backend = backend.on_rung("gather")
    case = layer(windows=1, heads=1, side=12, dim=40, candidates=30, topk=20, dtype=dtype)
    emu.configure(seed=3, shared_limit=33 << 10)
    assert_passed(check_layer(backend, case, train=True))
    case = layer(windows=1, heads=1, side=12, dim=40, topk=20, dtype=dtype)
    emu.configure(seed=3, shared_limit=64 << 10)
    assert_passed(check_layer(backend, case, train=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("limit_kib", [14, 16, 20])
def test_sparse_layer_with_keys_and_table_outside_of_shared_memory(
    backend: Any, dtype: torch.dtype, limit_kib: int
) -> None:
    """Ranges of keys pass by several warps once per tile, and every head reads its own column of the bias table."""
    backend = backend.on_rung("gather")
    case = layer(windows=1, heads=2, side=10, dim=40, candidates=20, topk=9, dtype=dtype)
    emu.configure(seed=limit_kib, shared_limit=limit_kib << 10)
    assert_passed(check_layer(backend, case, train=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("topk", [11, 64])
def test_dense_layer_with_the_table_outside_of_shared_memory(
    backend: Any, topk: int, dtype: torch.dtype
) -> None:
    """Just too little for the slice of the table: a launch with a window of the same size takes as much."""
    least = {(11, 2): (6, 7), (11, 4): (14,), (64, 2): (15,), (64, 4): (34,)}[topk, dtype.itemsize]
    for limit_kib in least:
        case = layer(windows=1, heads=3, side=8, dim=13, topk=topk, dtype=dtype)
        emu.configure(seed=limit_kib, shared_limit=limit_kib << 10)
        assert_passed(check_layer(backend, case, train=False))
        taken = []
        for bias in (case.bias, None):
            emu.configure(dry=True, shared_limit=limit_kib << 10)
            emu.take_dry_launches()
            backend.attention_forward(replace(case, bias=bias))
            taken.append(emu.take_dry_launches())
        assert taken[0] == taken[1]


def test_bias_gradient_of_more_windows_than_groups(backend: Any) -> None:
    """Windows beyond the 64th are added to a table that already holds one."""
    for options in ({"topk": 4}, {"topk": 2}, {"candidates": 3, "topk": 2}):
        assert_passed(check_layer(backend, layer(windows=66, heads=1, side=2, dim=4, **options), train=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit_kib", [8, 9, 12])
def test_dense_rows_too_long_for_a_tile_of_16(backend: Any, dtype: torch.dtype, limit_kib: int) -> None:
    """With little shared memory, or many keys, a block holds the logits of 8, 4, 2 or 1 rows.

    float32 keeps 32 rows of queries and keys as long as the published ones, 8 KiB more than the 16-bit types.
    """
    topk = (144, 20)[(limit_kib + DTYPES.index(dtype)) % 2]  # keeps all, or selects
    case = layer(windows=1, heads=1, side=12, dim=13, topk=topk, dtype=dtype)
    emu.configure(seed=limit_kib, shared_limit=(limit_kib + 8 * (dtype == torch.float32)) << 10)
    assert_passed(check_layer(backend, case, train=False))


def test_blocks_of_a_dense_layer_by_shared_memory(backend: Any) -> None:
    """5184 keys (windows of 72 x 72) fit 99 KB four rows at a time; nothing is run."""
    case = layer(windows=1, heads=1, side=72, dim=40, topk=100)
    blocks = {}
    for limit_kib in (64, 99, 227):
        emu.configure(dry=True, shared_limit=limit_kib << 10)
        emu.take_dry_launches()
        backend.attention_forward(case)
        ((_, blocks[limit_kib], _, _),) = emu.take_dry_launches()
    assert blocks == {64: 5184 // 2, 99: 5184 // 4, 227: 5184 // 8}


def test_gradients_are_the_same_in_every_order_of_execution() -> None:
    for name, rung in (("dense", None), ("selection", None), ("sparse", "gather"), ("sparse", "split")):
        case = layer(**LAYERS[name])
        backend = get("cuda-emu" if rung is None else f"cuda-emu-{rung}")
        out, new_index, new_logits, lse = backend.attention_forward(case)
        handed = torch.ones_like(new_logits) if new_logits.shape[-1] else None
        grads = []
        for seed in range(3):
            emu.configure(seed=seed)
            grads.append(backend.attention_backward(case, torch.ones_like(out), handed, new_index, out, lse))
        for other in grads[1:]:
            for one, two in zip(grads[0], other, strict=True):
                assert (one is None and two is None) or torch.equal(one, two)


def test_float16_gradients_keep_small_numbers(backend: Any) -> None:
    """Gradients of 1e-6 are far below float16's normal range; the map's gradient must not pass through it unscaled."""
    case = layer(topk=25, dtype=torch.float16, dim=16)
    out, new_index, _, lse = backend.attention_forward(case)

    def grad_bias(size: float) -> torch.Tensor:
        grad_out = torch.full_like(out, size)
        return backend.attention_backward(case, grad_out, None, new_index, out, lse)[0].float() / size

    large, small = grad_bias(1.0), grad_bias(2.0**-10)
    assert torch.allclose(large, small, rtol=0.0, atol=2.0**-24 * 2.0**10)


def test_empty_batches(backend: Any) -> None:
    case = layer(candidates=5, topk=3)
    case = case.with_tensors(**{name: getattr(case, name)[:0] for name in ("q", "k", "v", "index", "logits")})
    out, new_index, new_logits, lse = backend.attention_forward(case)
    assert out.shape == (0, 2, 25, 13)
    assert new_index.shape == new_logits.shape == (0, 2, 25, 3)
    grads = backend.attention_backward(case, out, new_logits, new_index, out, lse)
    assert grads[3] is not None
    assert not grads[3].any()
    empty = torch.empty(0, 4, 3, dtype=torch.int16)
    assert backend.sddmm(torch.empty(0, 4, 8), torch.empty(0, 5, 8), empty).shape == (0, 4, 3)
    assert backend.spmm_transpose(torch.empty(0, 4, 3), torch.empty(0, 4, 8), empty, 5).shape == (0, 5, 8)


@pytest.mark.parametrize("sizes", [(2, 0, 25), (2, 3, 0), (0, 3, 25)], ids=["heads", "queries", "windows"])
def test_layers_of_nothing(sizes: tuple[int, int, int]) -> None:
    q = torch.zeros((*sizes, 8), requires_grad=True)
    k = torch.ones((*sizes[:2], 25, 8), requires_grad=True)
    bias = torch.zeros((81, sizes[1]), requires_grad=True) if sizes[2] else None
    state = None
    for topk in (25, 6, 6, 4):
        out, state = pft_bench.progressive_attention(
            q, k, k, topk=topk, bias=bias, state=state, backend="cuda-emu"
        )
    out.sum().backward()
    for x in (q, k, bias):
        assert x is None or (x.grad is not None and not x.grad.any())


def test_float32_tiles_that_do_not_fit_are_refused_by_their_rung_alone(backend: Any) -> None:
    """More channels than registers hold, or more candidates than shared memory: `cuda` gathers."""
    for case in (layer(candidates=20, topk=5, dim=41), layer(side=20, candidates=400, topk=5, dim=8)):
        for rung, taken in (("split", None), (None, "attention_forward_sparse")):
            emu.configure(dry=True, shared_limit=90 << 10)
            emu.take_dry_launches()
            if taken is None:
                with pytest.raises(RuntimeError, match="shape is too large for this kernel"):
                    backend.on_rung(rung).attention_forward(case)
            else:
                backend.attention_forward(case)
                ((name, *_),) = emu.take_dry_launches()
                assert name == taken


def test_tiles_of_float32_are_refused_for_their_dtype(backend: Any) -> None:
    backend = backend.on_rung("tiles")
    with pytest.raises(
        RuntimeError, match=r"attention_forward \[.*\]: this kernel does not take these dtypes"
    ):
        backend.attention_forward(layer(candidates=12, topk=5))


def test_an_impossible_shape_is_an_error_that_names_kernel_and_shape(backend: Any) -> None:
    emu.configure(shared_limit=4096)
    case = layer(side=12, windows=1, heads=1, topk=3)
    with pytest.raises(RuntimeError, match=r"attention_forward \[1, 1, 144, 144, 13, 13, 144, 3\]"):
        backend.attention_forward(case)


def test_rows_without_equal_weights_sum_to_less_than_one(backend: Any) -> None:
    """Kept weights are not renormalised: with V = 1 the output is the kept share of the softmax."""
    case = layer(topk=3, dim=16, bias=False)
    case = case.with_tensors(v=torch.ones_like(case.v))
    out = backend.attention_forward(case)[0]
    z = case.scale * case.q.double() @ case.k.double().mT
    share = z.softmax(-1).topk(3).values.sum(-1, keepdim=True).expand_as(out)
    assert torch.allclose(out.double(), share, atol=1e-5)
    assert math.isclose(float(out.max()), float(share.max()), rel_tol=1e-5)
