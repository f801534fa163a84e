"""sddmm, spmm and spmm_transpose of the cpu backend against float64 sums."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import close, random_index

from pft_bench import reference
from pft_bench.backends import get
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
