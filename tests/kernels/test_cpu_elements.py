"""bfloat16 and float16 on the cpu backend: conversions bit by bit, all ops within the bounds of their check."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bad_rows import check_bad_rows

from pft_bench import _cpu
from pft_bench.backends import Layer, get
from pft_bench.harness.check import check_layer, check_product
from pft_bench.harness.inputs import index, layer, product

CPU = get("cpu")
DTYPES = (torch.bfloat16, torch.float16)

SHAPES = {  # batch, queries = keys, dim, kept
    "usual": (3, 64, 40, 16),
    "head_dim of the light model, kept not a multiple of a vector": (2, 50, 13, 21),
    "head_dim longer than templates know": (2, 40, 81, 17),
    "head_dim 1, one kept": (2, 9, 1, 1),
    "blocks of rows left over, all kept": (1, 70, 20, 70),
    "empty batch": (0, 8, 16, 3),
}
LAYERS = {
    "dense, keeps all": {"topk": 16},
    "dense, selects": {"topk": 5, "dim": 40},
    "dense, regions": {"topk": 16, "patterns": 2},
    "sparse, keeps all": {"candidates": 11, "topk": 11},
    "sparse, selects": {"candidates": 11, "topk": 6, "dim": 40},
    "rows of a block and vectors left over": {"tokens": 81, "dim": 13, "topk": 30},
    "five vectors and a panel left over": {"tokens": 36, "dim": 81, "dim_v": 83, "topk": 17},
    "the same, sparse": {"tokens": 36, "dim": 81, "dim_v": 83, "candidates": 20, "topk": 17},
    "more keys than queries": {"tokens": 3, "keys": 200, "bias": False, "topk": 200},
    "no windows": {"windows": 0, "topk": 16},
}


def failed(results):
    return [(result.name, result.worst, result.detail) for result in results if not result.passed]


def every_value(dtype):
    """All 65536 bit patterns, in order of the pattern."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 8])
def test_every_value_comes_in_and_goes_out_unchanged(dtype, dim):
    """Denormal numbers, infinities and NaN too: one times a value is that value."""
    values = every_value(dtype)
    v = values.view(1, -1, dim)
    everything = torch.arange(v.shape[1], dtype=torch.int32).view(1, -1, 1)
    made = CPU.spmm(torch.ones(1, v.shape[1], 1, dtype=dtype), v, everything)
    assert made.dtype == dtype
    same = (made.view(-1) == values) | (made.view(-1).isnan() & values.isnan())
    assert bool(same.all()), values[~same][:5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 13, 40])
def test_sums_are_rounded_to_the_nearest_even(dtype, dim):
    """Of two values, which float32 adds with one rounding at most. Some overflow, some are denormal."""
    g = torch.Generator().manual_seed(dim)
    places = torch.randint(0, 2**16, (2, 4000 * dim), generator=g)
    x, y = every_value(dtype)[places]
    near = torch.rand(x.shape, generator=g) < 0.5  # else one of the two is lost
    y = torch.where(near, x * torch.randint(-3, 4, x.shape, generator=g), y)
    v = torch.stack((x.view(-1, dim), y.view(-1, dim)), 1).view(1, -1, dim)
    pairs = torch.arange(v.shape[1], dtype=torch.int32).view(1, -1, 2)
    made = CPU.spmm(torch.ones(1, pairs.shape[1], 2, dtype=dtype), v, pairs).view(-1)
    wanted = (x.float() + y.float()).to(dtype)
    same = (made == wanted) | (made.isnan() & wanted.isnan())
    assert bool(same.all()), (x[~same][:3], y[~same][:3], made[~same][:3], wanted[~same][:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("op", ["sddmm", "spmm", "spmm_transpose"])
def test_products(op, shape, dtype):
    batch, rows, dim, kept = shape
    assert not failed(
        check_product(CPU, op, product(op, batch, rows, rows, dim, kept, dtype=dtype), train=True)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["sddmm", "spmm", "spmm_transpose"])
def test_views_have_the_same_bits_as_copies(op, dtype):
    given = product(op, 2, 30, 30, 40, 19, dtype=dtype)
    keys = (30,) if op == "spmm_transpose" else ()
    wide = {
        name: x if name == "index" else torch.stack((x - 1, x, x + 1), 2)[:, :, 1]
        for name, x in given.items()
    }
    assert not any(x.is_contiguous() for name, x in wide.items() if name != "index")
    assert torch.equal(getattr(CPU, op)(*wide.values(), *keys), getattr(CPU, op)(*given.values(), *keys))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_layers_and_their_gradients(options, dtype):
    assert not failed(check_layer(CPU, layer(**options, dtype=dtype), train=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_keeps_its_logits_in_float32(dtype):
    out, _, logits, lse = CPU.attention_forward(layer(candidates=9, topk=4, dtype=dtype))
    assert (out.dtype, logits.dtype, lse.dtype) == (dtype, torch.float32, torch.float32)


@pytest.mark.parametrize(
    "options", [{"topk": 16}, {"candidates": 9, "topk": 9}, {"candidates": 9, "topk": 5}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_of_the_largest_values_is_finite(dtype, options):
    made = layer(**options, dtype=dtype)
    largest = torch.full_like(made.v, torch.finfo(dtype).max)
    out = CPU.attention_forward(replace(made, v=largest))[0]
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_query_row_spoils_its_own_row_alone(dtype):
    made = layer(windows=1, topk=5, dtype=dtype)
    check_bad_rows(CPU, made)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_for_any_number_of_threads(dtype):
    made = layer(windows=5, heads=3, tokens=36, candidates=20, topk=11, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, new_index, logits, lse = CPU.attention_forward(made)
            grads = CPU.attention_backward(made, out, logits, new_index, out, lse)
            results.append((out, new_index, logits, lse, *(x for x in grads if x is not None)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_reads_are_the_sum_of_all_rows_named(dtype):
    rows = torch.randint(-2, 3, (3, 50, 26), generator=torch.Generator().manual_seed(0)).to(dtype)[..., :13]
    places = index(3, 7, 50, 5)
    expected = rows.float().gather(1, places.long().flatten(1).unsqueeze(-1).expand(-1, -1, 13)).sum(1)
    assert torch.equal(CPU.row_reads(rows, places), expected.to(dtype))


def test_the_module_refuses_other_elements():
    x = torch.zeros(64)
    given = (x.data_ptr(), (8, 4, 1))
    sizes = (1, 2, 2, 4, 1)
    with pytest.raises(ValueError, match=r"sddmm: element must be 0 \(float32\), 1 .* got 3"):
        _cpu.sddmm(given, given, x.data_ptr(), 2, x.data_ptr(), sizes, x.data_ptr(), 1 << 20, 1, 3)
    assert _cpu.sparse_workspace_bytes(sizes, 1, 1) > _cpu.sparse_workspace_bytes(sizes, 1, 0)


def test_float32_has_the_bits_that_it_had():
    """What 16 bits compute is what float32 does on the same numbers, rounded at the end: one path for all."""
    for dtype in DTYPES:
        made = layer(candidates=9, topk=4, dim=40, dtype=dtype)
        wide = Layer(made.q.float(), made.k.float(), made.v.float(), *made.arguments()[3:])
        half, full = CPU.attention_forward(made), CPU.attention_forward(wide)
        assert torch.equal(half[0], full[0].to(dtype))
        assert all(torch.equal(a, b) for a, b in zip(half[1:], full[1:], strict=True))
