"""Sparse products by the CUDA kernels, in the emulator with its race detector, against float64.

The bounds are those of `pft_bench.harness.check` (gamma_n); nothing here is tolerated by guess.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulated import DTYPES, SEEDS, assert_passed, distinct_index, in_turn, layer, product, tiles_of

import pft_bench
from pft_bench.backends import get
from pft_bench.harness.check import within
from pft_bench.harness.check.bounds import gamma, output_rounding
from pft_bench.harness.check.operator import check_product, exact_product

emu = pytest.importorskip("pft_bench._cuda_emu")
pytestmark = pytest.mark.usefixtures("emulator_defaults")

# b, n, m, d, kept: published head dims; K = 1, K = M, one row, one key, sizes that are multiples of nothing
PRODUCT_SHAPES = [
    (2, 32, 32, 40, 16),
    (1, 37, 41, 13, 41),
    (3, 16, 50, 20, 1),
    (1, 1, 1, 1, 1),
    (1, 65, 33, 24, 33),
    (2, 9, 300, 8, 130),
]


@pytest.mark.parametrize("version", ["plain", "resident"])
@pytest.mark.parametrize(("op", "dtype", "first"), in_turn(["sddmm", "spmm"], 2))
def test_products_and_their_gradients(
    backend: Any, op: str, dtype: torch.dtype, version: str, first: int
) -> None:
    backend = backend.on_rung(version)
    for number, (b, n, m, d, kept) in enumerate(PRODUCT_SHAPES):
        index = torch.int16 if (number + first) % 2 else torch.int32
        seed = (number // 2 + first) % len(SEEDS)
        emu.configure(seed=seed)
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
        *([("split", 99), ("split", 27)] if dtype == torch.float32 else []),
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
TRANSPOSE_SHAPES = [*PRODUCT_SHAPES[:4], (1, 33, 150, 72, 36)]


def transposed(
    backend: Any, a: torch.Tensor, x: torch.Tensor, index: torch.Tensor, keys: int, scale: float
) -> torch.Tensor:
    out = torch.full((x.shape[0], keys, x.shape[-1]), math.nan, dtype=x.dtype)
    backend._multiply("spmm_transpose", a, x, index, keys, None, out, scale)
    return out


TRANSPOSE_TILES = [(torch.float32, "tiles"), (torch.float32, "split"), *((t, "tiles") for t in DTYPES[1:])]


@pytest.mark.parametrize("weights", ["own", "float32", "small"])
@pytest.mark.parametrize(("dtype", "rung"), TRANSPOSE_TILES, ids=str)
def test_transposed_products_by_tiles(backend: Any, dtype: torch.dtype, rung: str, weights: str) -> None:
    """Sums in registers. float32 weights of 16-bit rows keep both their parts, however small the weights are."""
    if weights != "own" and dtype == torch.float32:
        return
    backend = backend.on_rung(rung)
    little = 27 if rung == "split" else 12  # room for one warp's keys
    for number, (b, n, m, d, kept) in enumerate(TRANSPOSE_SHAPES):
        emu.configure(seed=number, shared_limit=(99 if number % 2 else little) << 10)
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


@pytest.mark.parametrize("weights", ["own", "float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_products_of_sorted_entries(backend: Any, dtype: torch.dtype, weights: str) -> None:
    """The bits of accumulators in shared memory, whatever fits: terms come in the same order."""
    one, other = backend.on_rung("sorted"), backend.on_rung("resident")
    for number, (b, n, m, d, kept) in enumerate(
        (*TRANSPOSE_SHAPES, (1, 300, 70, 33, 8), (1, 20, 1030, 8, 5))
    ):
        inputs = product("spmm", b, n, m, d, kept, dtype, number, torch.int32 if number % 2 else torch.int16)
        g = torch.Generator().manual_seed(number)
        a, x = inputs["a"], torch.randn((b, n, d), generator=g).to(dtype)
        if weights != "own":
            a = torch.randn((b, n, kept), generator=g)
        before = torch.randn((b, m, d), generator=g) if number % 2 else None
        outs = []
        for way, limit_kib in ((other, 99), (one, 99), (one, 12)):
            if limit_kib == 12 and m > 150:
                continue
            emu.configure(seed=number, shared_limit=limit_kib << 10)
            out = torch.full((b, m, d), math.nan, dtype=dtype)
            way._multiply("spmm_transpose", a, x, inputs["index"], m, before, out, 0.75)
            outs.append(out)
        assert all(torch.equal(outs[0], out) for out in outs[1:])
        emu.configure(dry=True)
        emu.take_dry_launches()
        one.spmm_transpose(a, x, inputs["index"], m)
        one.spmm(a, inputs["v"], inputs["index"])
        first, second = (name for name, *_ in emu.take_dry_launches())
        assert (first, second.split("_")[0]) == ("spmm_transpose_sorted", "spmm")
        emu.configure()


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


@pytest.mark.parametrize(("dtype", "rung"), TRANSPOSE_TILES, ids=str)
def test_a_row_that_is_not_finite_spoils_the_keys_that_list_it_alone(
    backend: Any, dtype: torch.dtype, rung: str
) -> None:
    """A tile multiplies every key by every row: zero times infinity must not reach a key that does not list it."""
    backend = backend.on_rung(rung)
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


def test_many_entries_a_row_take_tiles() -> None:
    """16-bit rows from a 22nd of the keys on, float32 from a tenth, by FFMA from a fifth; fewer are sorted."""
    taken = {}
    for way, dtype in (
        ("cuda-emu", torch.float32),
        ("cuda-emu-ffma", torch.float32),
        ("cuda-emu", torch.float16),
    ):
        for kept in (5, 6, 12, 13, 25, 26):
            emu.configure(dry=True)
            emu.take_dry_launches()
            inputs = product("spmm", 1, 4, 128, 8, kept, dtype, 0, torch.int16)
            get(way).spmm_transpose(inputs["a"], inputs["v"][:, :4], inputs["index"], 128)
            ((name, *_),) = emu.take_dry_launches()
            taken.setdefault((way, str(dtype)[6:]), []).append(name.removeprefix("spmm_transpose_"))
    assert taken == {
        ("cuda-emu", "float32"): [*["sorted"] * 3, *["split"] * 3],
        ("cuda-emu-ffma", "float32"): [*["sorted"] * 5, "tiles"],
        ("cuda-emu", "float16"): ["sorted", *["tiles"] * 5],
    }


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
    for way in map(backend.on_rung, ("resident", "tiles", "split", "sorted")):
        results = []
        for seed in range(3):
            emu.configure(seed=seed)
            results.append(way.spmm_transpose(inputs["a"], x, inputs["index"], 48))
        assert all(torch.equal(results[0], r) for r in results[1:])


def test_duplicate_index_is_found_by_the_race_detector(backend: Any) -> None:
    """spmm_transpose owes its determinism to distinct indices within a row; two equal ones are a race."""
    index = torch.zeros((1, 8, 8), dtype=torch.int16)
    for rung in ("resident", "tiles", "split", "sorted"):
        with pytest.raises(RuntimeError, match=r"race: .*conflicts with thread"):
            backend.on_rung(rung).spmm_transpose(torch.ones(1, 8, 8), torch.ones(1, 8, 4), index, 8)


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


def test_what_a_device_refuses_is_an_error_that_names_op_shape_and_kernel(backend: Any) -> None:
    emu.configure(refuse=True)
    a, v = torch.ones(1, 4, 2), torch.ones(1, 8, 4)
    with pytest.raises(
        RuntimeError, match=r"^spmm \[1, 4, 8, 4, 2\]: spmm_resident: the emulator was told to"
    ):
        backend.spmm(a, v, torch.tensor([0, 1], dtype=torch.int16).expand(1, 4, 2).contiguous())


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


def test_an_index_out_of_range_is_found(backend: Any) -> None:
    """The op layer refuses it before; here the emulator stands in for compute-sanitizer."""
    index = torch.full((1, 4, 2), 99, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="out of bounds"):
        backend.spmm(torch.ones(1, 4, 2), torch.ones(1, 8, 4), index)
