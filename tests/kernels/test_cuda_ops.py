"""The CUDA kernels, executed in the emulator with the race detector on, against masked dense attention in float64.

The bounds are those of `pft_bench.harness.check` (gamma_n); nothing here is tolerated by guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from bad_rows import check_bad_rows

import pft_bench
from pft_bench import reference
from pft_bench.backends import Layer, get
from pft_bench.harness.check import within
from pft_bench.harness.check.bounds import gamma, output_rounding
from pft_bench.harness.check.operator import check_layer, check_product, exact_product

emu = pytest.importorskip("pft_bench._cuda_emu")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def _emulator_defaults() -> Iterator[None]:
    emu.configure()
    yield
    emu.configure()


@pytest.fixture
def backend() -> Any:
    found = get("cuda-emu")
    assert found.available() is None
    return found


def distinct_index(
    shape: tuple[int, ...], keys: int, generator: torch.Generator, *, ascending: bool, dtype: torch.dtype
) -> torch.Tensor:
    order = torch.rand((*shape[:-1], keys), generator=generator).argsort(-1)[..., : shape[-1]]
    return (order.sort(-1).values if ascending else order).to(dtype)


def assert_passed(results: list[Any]) -> None:
    failed = [str(r) for r in results if not r.passed]
    assert not failed, "\n".join(failed)


def product(
    op: str, b: int, n: int, m: int, d: int, kept: int, dtype: torch.dtype, seed: int, index: torch.dtype
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    places = distinct_index((b, n, kept), m, g, ascending=False, dtype=index)
    right = torch.randn((b, m, d), generator=g).to(dtype)
    if op == "sddmm":
        return {"q": torch.randn((b, n, d), generator=g).to(dtype), "k": right, "index": places}
    return {"a": torch.randn((b, n, kept), generator=g).to(dtype), "v": right, "index": places}


# b, n, m, d, kept: published head dims; K = 1, K = M, one row, one key, sizes that are multiples of nothing
PRODUCT_SHAPES = [
    (2, 32, 32, 40, 16),
    (1, 37, 41, 13, 41),
    (3, 16, 50, 20, 1),
    (1, 1, 1, 1, 1),
    (1, 65, 33, 24, 33),
    (2, 9, 300, 8, 130),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("version", ["plain", "resident"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["sddmm", "spmm"])
def test_products_and_their_gradients(
    backend: Any, op: str, dtype: torch.dtype, version: str, seed: int
) -> None:
    emu.configure(seed=seed)
    backend = backend.on_rung(version)
    for number, (b, n, m, d, kept) in enumerate(PRODUCT_SHAPES):
        index = torch.int16 if (number + seed) % 2 else torch.int32
        assert_passed(
            check_product(backend, op, product(op, b, n, m, d, kept, dtype, seed, index), train=True)
        )


@pytest.mark.parametrize("op", ["sddmm", "spmm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_by_tiles(backend: Any, op: str, dtype: torch.dtype) -> None:
    """All products of 16 rows by tensor cores, in several blocks of rows, warps of keys and blocks of columns.

    sddmm gathers where there are more channels than registers hold.
    """
    backend = backend.on_rung("tiles")
    for number, shape in enumerate(
        (*PRODUCT_SHAPES, (1, 130, 70, 40, 9), (1, 5, 20, 41, 3), (1, 20, 150, 72, 33))
    ):
        emu.configure(seed=number)
        index = torch.int16 if number % 2 else torch.int32
        assert_passed(check_product(backend, op, product(op, *shape, dtype, number, index)))
        emu.configure(dry=True)
        emu.take_dry_launches()
        getattr(backend, op)(*product(op, *shape, dtype, number, index).values())
        ((name, *_),) = emu.take_dry_launches()
        assert name == ("sddmm_resident" if op == "sddmm" and shape[3] > 40 else f"{op}_tiles")


def test_more_keys_than_tiles_hold_are_gathered(backend: Any) -> None:
    emu.configure(dry=True)
    emu.take_dry_launches()
    for keys in (1024, 1025):
        for op in ("sddmm", "spmm"):
            getattr(backend, op)(*product(op, 1, 4, keys, 8, 300, torch.float16, 0, torch.int16).values())
    names = [name for name, *_ in emu.take_dry_launches()]
    assert names == ["sddmm_tiles", "spmm_tiles", "sddmm_resident", "spmm_resident"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_memory_too_small_for_all_keys(backend: Any, dtype: torch.dtype) -> None:
    """Keys, columns and accumulators pass through shared memory in pieces."""
    backend = backend.on_rung("resident")
    for op in ("sddmm", "spmm"):
        inputs = product(op, 1, 20, 200, 40, 24, dtype, 5, torch.int16)
        emu.configure(seed=1, shared_limit=41 << 10 if op == "spmm" else 20 << 10)
        assert_passed(check_product(backend, op, inputs, train=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_added_to_what_was_there_before(backend: Any, dtype: torch.dtype) -> None:
    """The backward pass adds the listed entries to a dense part; here with keys and columns in several blocks."""
    b, n, m, d, kept = 2, 20, 200, 40, 24
    inputs = product("spmm", b, n, m, d, kept, dtype, 5, torch.int16)
    a, v, index = inputs["a"], inputs["v"], inputs["index"]
    g = torch.Generator().manual_seed(6)
    x = torch.randn((b, n, d), generator=g).to(dtype)
    before = [torch.randn((b, rows, d), generator=g) for rows in (n, m)]
    scale = 0.375
    versions = (
        ("plain", 99),
        ("resident", 99),
        ("resident", 41),
        ("resident", 15),
        ("tiles", 99),
        ("tiles", 15),
    )
    for version, limit_kib in versions:
        backend = backend.on_rung(version)
        emu.configure(seed=2, shared_limit=limit_kib << 10)
        outs = [torch.full((b, rows, d), math.nan, dtype=dtype) for rows in (n, m)]
        backend._multiply("spmm", a, v, index, m, before[0], outs[0], scale)
        backend._multiply("spmm_transpose", a, x, index, m, before[1], outs[1], scale)
        for op, right, keys, given, out in (
            ("spmm", v, None, before[0], outs[0]),
            ("spmm_transpose", x, m, before[1], outs[1]),
        ):
            value, bound = exact_product(op, a, right, index, keys)
            wanted = given.double() + scale * value
            bound = bound + gamma(3, 2.0**-24) * (given.double().abs() + value.abs())
            assert_passed(
                [within(f"{op} {version} {limit_kib}", out, wanted, bound + output_rounding(wanted, dtype))]
            )


# b, n, m, d, kept: more than one tile of rows, warp of keys, block of columns; rows that are not aligned
TRANSPOSE_SHAPES = [*PRODUCT_SHAPES[:4], (1, 33, 150, 72, 33)]


def transposed(
    backend: Any, a: torch.Tensor, x: torch.Tensor, index: torch.Tensor, keys: int, scale: float
) -> torch.Tensor:
    out = torch.full((x.shape[0], keys, x.shape[-1]), math.nan, dtype=x.dtype)
    backend._multiply("spmm_transpose", a, x, index, keys, None, out, scale)
    return out


@pytest.mark.parametrize("weights", ["own", "float32", "small"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_products_by_tiles(backend: Any, dtype: torch.dtype, weights: str) -> None:
    """Sums in registers. float32 weights of 16-bit rows keep both their parts, however small the weights are."""
    if weights != "own" and dtype == torch.float32:
        return
    backend = backend.on_rung("tiles")
    for number, (b, n, m, d, kept) in enumerate(TRANSPOSE_SHAPES):
        emu.configure(seed=number, shared_limit=(99 if number % 2 else 12) << 10)
        inputs = product("spmm", b, n, m, d, kept, dtype, number, torch.int16)
        a, index, scale = inputs["a"], inputs["index"], 1.0
        g = torch.Generator().manual_seed(number)
        x = torch.randn((b, n, d), generator=g).to(dtype)
        if weights != "own":
            a = torch.randn((b, n, kept), generator=g)
        if weights == "small":  # no number of float16 is as small; the result is
            scale = 2.0**40
            a /= scale
        out = transposed(backend, a, x, index, m, scale)
        spread = torch.zeros((b, n, m), dtype=torch.float64).scatter(-1, index.long(), scale * a.double())
        exact, sums = spread.mT @ x.double(), spread.abs().mT @ x.double().abs()
        bound = gamma(n + 4, 2.0**-24) * sums + output_rounding(exact, dtype)
        if dtype == torch.bfloat16 and weights != "own":
            bound = bound + 2.0**-17 * sums  # two parts of eight bits each
        assert_passed([within(f"spmm_transpose tiles {b, n, m, d, kept}", out, exact, bound)])


@pytest.mark.parametrize("weights", ["float32", "small"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_weights_of_products_by_tiles(backend: Any, dtype: torch.dtype, weights: str) -> None:
    """As in the backward pass: both parts of a weight count, however small the row's weights are."""
    backend = backend.on_rung("tiles")
    for number, (b, n, m, d, kept) in enumerate(TRANSPOSE_SHAPES):
        emu.configure(seed=number)
        inputs = product("spmm", b, n, m, d, kept, dtype, number, torch.int16)
        a, scale = torch.randn((b, n, kept), generator=torch.Generator().manual_seed(number)), 1.0
        if (
            weights == "small"
        ):  # no number of float16 is as small, and every row has a size of its own; the sum has not
            scale = 2.0**40
            a *= 2.0 ** -torch.arange(n).remainder(7).unsqueeze(-1) / scale
        out = torch.full((b, n, d), math.nan, dtype=dtype)
        backend._multiply("spmm", a, inputs["v"], inputs["index"], m, None, out, scale)
        spread = torch.zeros((b, n, m), dtype=torch.float64).scatter(
            -1, inputs["index"].long(), scale * a.double()
        )
        exact, sums = spread @ inputs["v"].double(), spread.abs() @ inputs["v"].double().abs()
        bound = gamma(m + 4, 2.0**-24) * sums + output_rounding(exact, dtype)
        if dtype == torch.bfloat16:
            bound = bound + 2.0**-17 * sums  # two parts of eight bits each
        assert_passed([within(f"spmm tiles {b, n, m, d, kept}", out, exact, bound)])


@pytest.mark.parametrize("kernel", ["spmm", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_that_is_not_finite_spoils_the_rows_that_list_it_alone(
    backend: Any, dtype: torch.dtype, kernel: str
) -> None:
    """A tile multiplies every row by every value: zero times infinity must not reach a row that does not list it."""
    backend = tiles_of(backend, dtype)
    side, dim, kept, key, col = 5, 8, 4, 17, 3
    case = layer(windows=1, heads=1, side=side, dim=dim, candidates=kept, topk=kept, dtype=dtype)
    assert case.index is not None
    assert case.logits is not None
    a, index = case.logits[0].to(dtype) - 1, case.index[0]
    listed = (case.index[0, 0] == key).any(-1)
    assert 0 < listed.sum() < side * side

    def forward(v: torch.Tensor) -> Any:
        if kernel == "layer":
            return backend.attention_forward(case.with_tensors(v=v))[0][0, 0]
        return backend.spmm(a, v[0].contiguous(), index)[0]

    clean = forward(case.v)
    for value in (math.nan, math.inf, -math.inf):
        v = case.v.clone()
        v[0, 0, key, col] = value
        out = forward(v)
        assert torch.equal(out[~listed], clean[~listed])
        assert not out[listed][:, col].isfinite().any()
        others = torch.arange(dim) != col
        assert torch.equal(out[:, others], clean[:, others])
    weights = a.clone()
    weights[0, 2, 1] = -math.inf
    out = backend.spmm(weights, case.v[0].contiguous(), index)[0]
    clean = backend.spmm(a, case.v[0].contiguous(), index)[0]
    assert not out[2].isfinite().any()
    assert torch.equal(out[3:], clean[3:])
    assert torch.equal(out[:2], clean[:2])


def test_tiles_are_the_same_in_every_order_of_execution(backend: Any) -> None:
    """Warps' sums join in one order: seeds change the order of blocks, warps and lanes, never a bit of the result."""
    inputs = product("spmm", 2, 40, 200, 40, 32, torch.float16, 3, torch.int16)
    case = layer(windows=1, heads=1, side=12, dim=40, candidates=40, topk=30, dtype=torch.float16)
    float32 = case.map(lambda x: x.float() if x.is_floating_point() else x)
    results = []
    for seed in range(3):
        emu.configure(seed=seed)
        backend = backend.on_rung("tiles")
        split = backend.on_rung("split").attention_forward(float32)
        results.append((backend.spmm(*inputs.values()), *backend.attention_forward(case), *split))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_is_not_finite_spoils_the_keys_that_list_it_alone(
    backend: Any, dtype: torch.dtype
) -> None:
    """A tile multiplies every key by every row: zero times infinity must not reach a key that does not list it."""
    backend = backend.on_rung("tiles")
    n, m, d, kept, row, col = 20, 70, 40, 5, 17, 11
    inputs = product("spmm", 1, n, m, d, kept, dtype, 3, torch.int16)
    a, index = inputs["a"], inputs["index"]
    x = torch.randn((1, n, d), generator=torch.Generator().manual_seed(4)).to(dtype)
    listed = torch.zeros(m, dtype=torch.bool).scatter(0, index[0, row].long(), True)
    clean = transposed(backend, a, x, index, m, 2.0)
    for value in (math.nan, math.inf, -math.inf):
        bad = x.clone()
        bad[0, row, col] = value
        out = transposed(backend, a, bad, index, m, 2.0)[0]
        expected = clean[0].clone()
        expected[index[0, row].long(), col] = a[0, row] * value
        assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert not out[listed, col].isfinite().any()
    bad_weights = a.clone()
    bad_weights[0, row, 2] = math.inf
    out = transposed(backend, bad_weights.float(), x, index, m, 2.0)[0]
    key = int(index[0, row, 2])
    assert not out[key].isfinite().any()
    others = torch.arange(m) != key
    assert torch.equal(out[others], transposed(backend, a.float(), x, index, m, 2.0)[0][others])


def test_many_entries_a_row_take_tiles(backend: Any) -> None:
    """16-bit rows from a 64th of the keys on, float32 from a 16th; fewer have accumulators in shared memory."""
    taken = {}
    for dtype in (torch.float32, torch.float16):
        for kept in (1, 2, 7, 8):
            emu.configure(dry=True)
            emu.take_dry_launches()
            inputs = product("spmm", 1, 4, 128, 8, kept, dtype, 0, torch.int16)
            backend.spmm_transpose(inputs["a"], inputs["v"][:, :4], inputs["index"], 128)
            ((name, *_),) = emu.take_dry_launches()
            taken[str(dtype)[6:], kept] = name.removeprefix("spmm_transpose_")
    assert taken == {
        ("float32", 1): "owner", ("float32", 2): "owner", ("float32", 7): "owner", ("float32", 8): "tiles",
        ("float16", 1): "owner", ("float16", 2): "tiles", ("float16", 7): "tiles", ("float16", 8): "tiles",
    }  # fmt: skip


def test_offsets_of_window_heads_need_64_bits() -> None:
    """1440 window-heads of the x2 image are far apart once N*D*3*H elements lie between them."""
    for window, head, stride_window, stride_head in (
        (3, 1, 2**31 - 8, 40),
        (1, 2, 40, 2**31 + 3),
        (70_000, 5, 2**20, 2**16),
        (2, 1, -(2**31), 7),
        (5, 3, 0, -(2**33)),
    ):
        b = window * 6 + head
        assert (
            emu.head_offset(6, stride_window, stride_head, b) == window * stride_window + head * stride_head
        )


@pytest.mark.parametrize("version", ["plain", "resident"])
def test_lists_longer_than_a_staged_tile(backend: Any, version: str) -> None:
    """More than 2048 entries a row: spmm_transpose stages them in pieces."""
    backend = backend.on_rung(version)
    inputs = product("spmm", 1, 2, 2100, 4, 2070, torch.float32, 1, torch.int16)
    emu.configure(seed=1)
    assert_passed(check_product(backend, "spmm", inputs, train=True))


def test_strides(backend: Any) -> None:
    """Views of one qkv projection, unaligned rows, an expanded operand: the same bits as contiguous ones."""
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn((2, 24, 3, 13), generator=g)
    q, k = qkv[:, :, 0], qkv[:, :, 1]
    index = distinct_index((2, 24, 7), 24, g, ascending=False, dtype=torch.int16)
    assert_passed(check_product(backend, "sddmm", {"q": q, "k": k, "index": index}, train=True))
    assert torch.equal(backend.sddmm(q, k, index), backend.sddmm(q.contiguous(), k.contiguous(), index))
    shared = torch.randn((1, 24, 16), generator=g).expand(2, 24, 16)
    a = torch.randn((2, 24, 7), generator=g)
    assert torch.equal(backend.spmm(a, shared, index), backend.spmm(a, shared.contiguous(), index))


def test_transpose_is_the_same_in_every_order_of_execution(backend: Any) -> None:
    """One owner per sum: seeds change the order of blocks, warps and lanes, never a bit of the result."""
    inputs = product("spmm", 2, 64, 48, 40, 32, torch.float32, 3, torch.int16)
    x = torch.randn(2, 64, 40)
    results = []
    for seed in range(4):
        emu.configure(seed=seed)
        results.append(backend.spmm_transpose(inputs["a"], x, inputs["index"], 48))
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_duplicate_index_is_found_by_the_race_detector(backend: Any) -> None:
    """spmm_transpose owes its determinism to distinct indices within a row; two equal ones are a race."""
    index = torch.zeros((1, 8, 2), dtype=torch.int16)
    with pytest.raises(RuntimeError, match=r"race: .*conflicts with thread"):
        backend.spmm_transpose(torch.ones(1, 8, 2), torch.ones(1, 8, 4), index, 8)


def layer(
    *,
    windows: int = 2,
    heads: int = 2,
    side: int = 5,
    dim: int = 13,
    dim_v: int | None = None,
    candidates: int | None = None,
    topk: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    bias: bool = True,
    regions: int = 0,
    ties: bool = False,
) -> Layer:
    """A layer on windows of side x side tokens; sparse with `candidates` entries a row, else dense."""
    g = torch.Generator().manual_seed(seed)
    n, dim_v = side * side, dim_v or dim
    # memory order [W, N, H, D], as a projection leaves it
    q, k = (torch.randn((windows, n, heads, dim), generator=g).to(dtype).transpose(1, 2) for _ in range(2))
    v = torch.randn((windows, n, heads, dim_v), generator=g).to(dtype).transpose(1, 2)
    if ties:
        k = torch.zeros_like(k)
    table = torch.randn(((2 * side - 1) ** 2, heads), generator=g) if bias else None
    region = torch.randint(0, 3, (regions, n), generator=g, dtype=torch.uint8) if regions else None
    index = logits = None
    if candidates is not None:
        index = distinct_index((windows, heads, n, candidates), n, g, ascending=True, dtype=torch.int16)
        logits = torch.randn((windows, heads, n, candidates), generator=g)
        logits = torch.zeros_like(logits) if ties else logits - logits.amax(-1, keepdim=True)
    return Layer(q, k, v, table, region, index, logits, dim**-0.5, 100.0, topk)


LAYERS = {
    "dense": {"topk": 25},
    "dense, one window of 36": {"windows": 1, "side": 6, "dim": 40, "topk": 40},
    "dense, regions": {"topk": 25, "regions": 2, "windows": 3},
    "dense, chain of three": {"side": 4, "dim": 60, "dim_v": 20, "topk": 16},
    "dense, no bias": {"topk": 25, "bias": False},
    "selection": {"topk": 6},
    "selection, regions": {"topk": 7, "regions": 2},
    "selection, K = 1": {"topk": 1, "side": 4, "dim": 20},
    "selection, wide values": {"topk": 9, "side": 4, "dim": 24, "dim_v": 72, "heads": 1},
    "sparse": {"candidates": 12, "topk": 5, "dim": 40},
    "sparse, nothing dropped": {"candidates": 12, "topk": 12},
    "sparse, K = 1": {"candidates": 9, "topk": 1, "dim": 20},
    "sparse, one candidate": {"candidates": 1, "topk": 1},
    "sparse, more than a warp": {"candidates": 40, "topk": 33, "side": 7, "windows": 1, "heads": 1},
    "sparse, no bias": {"candidates": 12, "topk": 5, "bias": False},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
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


def tiles_of(backend: Any, dtype: torch.dtype) -> Any:
    """The rung that picks a sparse layer's candidates from tiles."""
    return backend.on_rung("split" if dtype == torch.float32 else "tiles")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TILED)
def test_sparse_layers_on_tensor_core_tiles(backend: Any, name: str, dtype: torch.dtype, seed: int) -> None:
    """What long lists of candidates take, here at any length, forward and (16-bit types) backward."""
    emu.configure(seed=seed)
    backend, train = tiles_of(backend, dtype), dtype != torch.float32
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


@pytest.mark.parametrize("wide", [False, True], ids=["int16", "int32"])
@pytest.mark.parametrize("limit_kib", [40, 48, 99])
def test_float32_tiles_in_stretches_of_keys(backend: Any, limit_kib: int, wide: bool) -> None:
    """With little shared memory fewer rows and keys at a time, and the bias table where it lies; the same bits."""
    case = listed_in_stretches()
    assert case.index is not None
    if wide:
        case = case.with_tensors(index=case.index.int())
    backend = backend.on_rung("split")
    emu.configure(seed=limit_kib, shared_limit=limit_kib << 10)
    assert_passed(check_layer(backend, case, train=False))


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
        assert_passed(check_layer(backend, layer(windows=70, side=2, dim=4, **options), train=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit_kib", [8, 9, 12])
@pytest.mark.parametrize("topk", [144, 20])
def test_dense_rows_too_long_for_a_tile_of_16(
    backend: Any, dtype: torch.dtype, limit_kib: int, topk: int
) -> None:
    """With little shared memory, or many keys, a block holds the logits of 8, 4, 2 or 1 rows.

    float32 keeps 32 rows of queries and keys as long as the published ones, 8 KiB more than the 16-bit types.
    """
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


def test_gradients_are_the_same_in_every_order_of_execution(backend: Any) -> None:
    for name in ("dense", "selection", "sparse"):
        case = layer(**LAYERS[name])
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


@pytest.mark.parametrize("version", ["plain", "resident"])
@pytest.mark.parametrize("shape", [(1, 4, 0, 8, 0), (1, 0, 5, 8, 3), (2, 4, 5, 8, 0)], ids=str)
def test_products_of_nothing(backend: Any, version: str, shape: tuple[int, ...]) -> None:
    """Without keys, queries or entries: zeros, or nothing; a crash would end Python."""
    backend = backend.on_rung(version)
    b, n, m, d, kept = shape
    for op in ("sddmm", "spmm"):
        assert_passed(
            check_product(backend, op, product(op, *shape, torch.float32, 0, torch.int16), train=True)
        )
    index = torch.zeros((b, n, kept), dtype=torch.int64)
    q, k = torch.zeros((b, n, d), requires_grad=True), torch.zeros((b, m, d), requires_grad=True)
    a = pft_bench.sddmm(q, k, index[..., : min(1, kept)], backend="cuda-emu")
    pft_bench.spmm(a, k, index[..., : min(1, kept)], backend="cuda-emu").sum().backward()
    assert not q.grad.any()
    assert not k.grad.any()


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


def test_what_a_device_refuses_is_an_error_that_names_op_shape_and_kernel(backend: Any) -> None:
    emu.configure(refuse=True)
    a, v = torch.ones(1, 4, 2), torch.ones(1, 8, 4)
    with pytest.raises(
        RuntimeError, match=r"^spmm \[1, 4, 8, 4, 2\]: spmm_resident: the emulator was told to"
    ):
        backend.spmm(a, v, torch.tensor([0, 1], dtype=torch.int16).expand(1, 4, 2).contiguous())


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


def test_more_blocks_than_a_grid_has_are_refused() -> None:
    """Nothing is run: sizes alone, with strides of zero."""
    emu.configure(dry=True)
    none, few, many = (0, 0), (0, 0, (0, 0, 0)), 2**31
    place, sizes = (0, 0), (many, 1, 4, 8, 4, 0)
    with pytest.raises(
        RuntimeError, match=r"spmm \[2147483648, 4, 8, 4, 0\]: shape is too large for this kernel"
    ):
        emu.spmm(sizes, few, (64, 0, (0, 0, 0)), none, 0, (64, 0, (0, 0, 0)), 1.0, -1, place)
    with pytest.raises(RuntimeError, match="shape is too large for this kernel"):
        emu.spmm((1, 1, many, 8, 4, 0), few, (64, 0, (0, 0, 0)), none, 0, (64, 0, (0, 0, 0)), 1.0, -1, place)


def test_an_impossible_shape_is_an_error_that_names_kernel_and_shape(backend: Any) -> None:
    emu.configure(shared_limit=4096)
    case = layer(side=12, windows=1, heads=1, topk=3)
    with pytest.raises(RuntimeError, match=r"attention_forward \[1, 1, 144, 144, 13, 13, 144, 3\]"):
        backend.attention_forward(case)


def test_an_index_out_of_range_is_found(backend: Any) -> None:
    """The op layer refuses it before; here the emulator stands in for compute-sanitizer."""
    index = torch.full((1, 4, 2), 99, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="out of bounds"):
        backend.spmm(torch.ones(1, 4, 2), torch.ones(1, 8, 4), index)


def test_rows_without_equal_weights_sum_to_less_than_one(backend: Any) -> None:
    """Kept weights are not renormalised: with V = 1 the output is the kept share of the softmax."""
    case = layer(topk=3, dim=16, bias=False)
    case = case.with_tensors(v=torch.ones_like(case.v))
    out = backend.attention_forward(case)[0]
    z = case.scale * case.q.double() @ case.k.double().mT
    share = z.softmax(-1).topk(3).values.sum(-1, keepdim=True).expand_as(out)
    assert torch.allclose(out.double(), share, atol=1e-5)
    assert math.isclose(float(out.max()), float(share.max()), rel_tol=1e-5)
