"""sddmm, spmm and spmm_transpose of the cpu backend against float64 sums."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import close, random_index

from pft_bench import reference
from pft_bench.backends import BadIndex, get
from pft_bench.backends.base import poisoned

CPU = get("cpu")

SHAPES = {  # batch, queries, keys, dim, kept
    "usual": (3, 33, 64, 40, 16),
    "kept not a multiple of 16": (2, 17, 50, 40, 21),
    "head_dim of the light model": (2, 16, 64, 13, 32),
    "head_dim 1": (2, 5, 9, 1, 4),
    "head_dim of one vector more than templates know": (2, 7, 40, 81, 17),
    "head_dim longer than a slice": (1, 5, 20, 150, 9),
    "one query": (2, 1, 64, 20, 7),
    "one kept": (2, 9, 64, 20, 1),
    "all kept": (2, 9, 18, 20, 18),
    "one key": (1, 4, 1, 8, 1),
    "more keys than queries": (2, 5, 300, 24, 100),
    "a second block of rows, chunks of 32": (2, 70, 300, 40, 130),
    "a third block of rows, chunks of 64": (1, 131, 400, 13, 290),
    "empty batch": (0, 4, 8, 16, 3),
}
LAYOUTS = ("contiguous", "view of qkv", "expanded")


def rows(generator, batch, count, dim, layout="contiguous"):
    """[batch, count, dim] in the given memory layout, unit last stride."""
    if layout == "view of qkv":
        return torch.randn(batch, count, 3, dim, generator=generator)[:, :, 1]
    if layout == "expanded":  # stride 0
        return torch.randn(1, 1, dim, generator=generator).expand(batch, count, dim)
    return torch.randn(batch, count, dim, generator=generator)


def check_all(batch, queries, keys, dim, kept, layout="contiguous", change_index=lambda index: index):
    g = torch.Generator().manual_seed(1)
    q, k, x = (rows(g, batch, n, dim, layout) for n in (queries, keys, queries))
    a = rows(g, batch, queries, kept, layout)
    index = change_index(random_index(g, (batch, queries), keys, kept))
    q64, k64, x64, a64 = (t.double() for t in (q, k, x, a))
    with poisoned():
        products, sums, scattered = (
            CPU.sddmm(q, k, index),
            CPU.spmm(a, k, index),
            CPU.spmm_transpose(a, x, index, keys),
        )
    assert products.dtype == sums.dtype == scattered.dtype == torch.float32
    magnitude = reference.sddmm(q64.abs(), k64.abs(), index)
    close(products, reference.sddmm(q64, k64, index), dim, magnitude)
    close(sums, reference.spmm(a64, k64, index), kept, reference.spmm(a64.abs(), k64.abs(), index))
    close(
        scattered,
        reference.spmm_transpose(a64, x64, index, keys),
        queries,
        reference.spmm_transpose(a64.abs(), x64.abs(), index, keys),
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape):
    check_all(*shape)


def test_rows_that_are_gathered_in_place_may_begin_anywhere():
    g = torch.Generator().manual_seed(4)
    q, k = rows(g, 2, 9, 40), torch.randn(2 * 64 * 40 + 3, generator=g)[3:].view(2, 64, 40)
    index = random_index(g, (2, 9), 64, 20)
    assert torch.equal(CPU.sddmm(q, k, index), CPU.sddmm(q, k.clone(), index))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    check_all(3, 20, 30, 40, 19, layout=layout)


def test_index_of_int32():
    check_all(2, 9, 64, 40, 20, change_index=lambda index: index.int())


def test_index_in_descending_order():
    check_all(2, 9, 64, 40, 20, change_index=lambda index: index.flip(-1).contiguous())


def test_a_nan_comes_out_where_it_went_in():
    g = torch.Generator().manual_seed(2)
    q, k = rows(g, 1, 4, 40), rows(g, 1, 6, 40)
    k[0, 3, 39] = torch.nan
    index = torch.tensor([[[0, 1], [2, 3], [3, 5], [1, 2]]], dtype=torch.int16)
    assert CPU.sddmm(q, k, index).isnan().tolist() == (index == 3).tolist()
    assert CPU.spmm(torch.ones(1, 4, 2), k, index)[0, :, 39].isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_for_any_number_of_threads(threads):
    g = torch.Generator().manual_seed(3)
    q, k, a = rows(g, 7, 40, 40), rows(g, 7, 50, 40), rows(g, 7, 40, 20)
    index = random_index(g, (7, 40), 50, 20)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            results.append(
                (CPU.sddmm(q, k, index), CPU.spmm(a, k, index), CPU.spmm_transpose(a, q, index, 50))
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dim", [1, 13, 40, 100])
@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32])
def test_row_reads_are_the_sum_of_all_rows_named(dim, index_dtype):
    """Of whole numbers, so exactly; 70 queries are two blocks, of rows with a stride of their own."""
    generator = torch.Generator().manual_seed(dim)
    rows = torch.randint(-8, 9, (3, 50, 2 * dim), generator=generator).float()[..., :dim]
    index = torch.rand(3, 70, 50, generator=generator).argsort(-1)[..., :11].to(index_dtype)
    expected = rows.gather(1, index.long().flatten(1).unsqueeze(-1).expand(-1, -1, dim)).sum(1)
    with poisoned():
        assert torch.equal(CPU.row_reads(rows, index), expected)


@pytest.mark.parametrize("ascending", [True, False], ids=["ascending", "not"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_an_unchecked_index_gives_the_same_bits(shape, dtype, ascending):
    batch, queries, keys, dim, kept = shape
    g = torch.Generator().manual_seed(5)
    q, k, a = rows(g, batch, queries, dim), rows(g, batch, keys, dim), rows(g, batch, queries, kept)
    known = random_index(g, (batch, queries), keys, kept)
    if not ascending:
        known = known[..., torch.randperm(kept, generator=g)].contiguous()
    for op, *operands in (
        (CPU.sddmm, q, k, known),
        (CPU.spmm, a, k, known),
        (CPU.spmm_transpose, a, q, known, keys),
    ):
        expected = op(*operands)
        operands[2] = known.to(dtype)
        with poisoned():
            assert torch.equal(op(*operands, checked=False), expected)


FAULTS = {  # what the entry becomes
    "negative": -1,
    "the number of keys": 300,
    "smallest": None,
    "largest": None,
    "that of its neighbour": "next",
    "that of the row's other end": "far",
}


@pytest.mark.parametrize("ascending", [True, False], ids=["ascending", "not"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_entry_of_an_unchecked_index_is_an_error(fault, dtype, ascending):
    """Anywhere: first and last entry, rows at both ends of a block, a block of all rows that are left."""
    batch, queries, keys, kept = 2, 130, 300, 9
    g = torch.Generator().manual_seed(6)
    q, k, a = rows(g, batch, queries, 8), rows(g, batch, keys, 8), rows(g, batch, queries, kept)
    good = random_index(g, (batch, queries), keys, kept).to(dtype)
    if not ascending:
        good = good.flip(-1).contiguous()
    limits = {"smallest": torch.iinfo(dtype).min, "largest": torch.iinfo(dtype).max}
    for item, row, place in ((0, 0, 0), (0, 63, 8), (0, 64, 0), (1, 100, 4), (1, 128, 8), (1, 129, 0)):
        other = {"next": place - 1 if place else 1, "far": 8 - place if place != 4 else 0}
        index, value = good.clone(), FAULTS[fault]
        index[item, row, place] = (
            index[item, row, other[value]] if value in other else limits.get(fault, value)
        )
        for call in (
            lambda index: CPU.sddmm(q, k, index, checked=False),
            lambda index: CPU.spmm(a, k, index, checked=False),
            lambda index: CPU.spmm_transpose(a, q, index, keys, checked=False),
        ):
            call(good)
            with pytest.raises(BadIndex):
                call(index)


@pytest.mark.parametrize("value", [2**16 + 1, 2**31, 2**32 + 1, 2**63 - 1, -(2**32) + 1])
def test_an_unchecked_entry_does_not_wrap_to_a_key(value):
    """A row of its own that ascends where the value does, and that would where the value is cut to 16 or 32 bits."""
    q, k = torch.ones(1, 1, 8), torch.ones(1, 9, 8)
    for index in ([0, value], [value, 2], [2, 0, value]):
        with pytest.raises(BadIndex):
            CPU.sddmm(q, k, torch.tensor([[index]]), checked=False)
