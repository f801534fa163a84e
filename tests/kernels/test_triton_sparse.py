"""The sparse products in Triton against masked dense products in float64, within the derived bounds."""

import pytest
import torch
from triton_cases import DEVICE, assert_passed, normal, random_index, runs_kernels, with_dtypes

from pft_bench.backends import get
from pft_bench.harness.check import check_product

pytestmark = runs_kernels

# batch, queries, keys, head_dim, kept
SHAPES = {
    "nothing is a multiple of anything": (3, 37, 41, 13, 7),
    "one kept": (1, 33, 50, 40, 1),
    "all kept, dense tiles picked from": (1, 66, 70, 13, 70),
    "more rows than keys, D beyond one tile": (1, 40, 5, 70, 3),
    "empty batch": (0, 8, 8, 13, 3),
    "no queries": (2, 0, 8, 13, 3),
}


@pytest.mark.parametrize(("shape", "dtype"), with_dtypes(SHAPES))
@pytest.mark.parametrize("op", ["sddmm", "spmm"])
def test_products_and_their_gradients(op, shape, dtype):
    batch, queries, keys, dim, kept = shape
    index = random_index(batch, queries, keys, kept, ascending=False)
    features = normal(batch, keys, dim, dtype=dtype, seed=2)
    if op == "sddmm":
        inputs = {"q": normal(batch, queries, dim, dtype=dtype, seed=1), "k": features, "index": index}
    else:
        inputs = {"a": normal(batch, queries, kept, dtype=dtype, seed=1), "v": features, "index": index}
    assert_passed(check_product(get("triton"), op, inputs, train=True))


@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32])
def test_index_dtypes_give_the_same_bits(index_dtype):
    index = random_index(2, 20, 30, 6)
    q, k = normal(2, 20, 40, seed=1), normal(2, 30, 40, seed=2)
    expected = get("triton").sddmm(q, k, index)
    assert torch.equal(get("triton").sddmm(q, k, index.to(index_dtype)), expected)


@pytest.mark.parametrize("offset", [0, 3])
def test_strided_and_expanded_inputs(offset):
    """Rows of a wider matrix, at an offset that breaks 16-byte alignment, and a batch of stride 0."""
    index = random_index(2, 20, 30, 6)
    wide = normal(2, 20, 64, seed=1)
    q = wide[..., offset : offset + 40]
    k = normal(30, 40, seed=2).expand(2, 30, 40)
    a = normal(2, 20, 12, seed=3)[..., offset : offset + 6]
    assert_passed(check_product(get("triton"), "sddmm", {"q": q, "k": k, "index": index}, train=True))
    assert_passed(check_product(get("triton"), "spmm", {"a": a, "v": k, "index": index}, train=True))


def test_transpose_of_an_unnamed_key_is_zero_and_repeats_exactly():
    index = torch.zeros(1, 50, 1, dtype=torch.int16, device=DEVICE)
    a, x = normal(1, 50, 1, seed=1), normal(1, 50, 13, seed=2)
    first = get("triton").spmm_transpose(a, x, index, 3)
    assert torch.equal(first[:, 1:], torch.zeros_like(first[:, 1:]))
    for _ in range(3):
        assert torch.equal(get("triton").spmm_transpose(a, x, index, 3), first)
