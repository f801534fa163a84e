"""The fused layer in Triton, forward and backward, against masked dense attention in float64."""

import pytest
import torch
from bad_rows import check_bad_rows
from triton_cases import (
    DEVICE,
    INTERPRETED,
    assert_passed,
    normal,
    random_layer,
    runs_kernels,
    with_dtypes,
)

import pft_bench
from pft_bench import reference
from pft_bench.backends import get
from pft_bench.harness.check import Layer, check_layer

pytestmark = runs_kernels

CASES = {
    "dense, all kept, shifted windows": {"windows": 2, "queries": 9, "topk": 99, "patterns": 2},
    "dense, K = N, D = 40, views of a projection": {"queries": 25, "dim": 40, "topk": 25, "projected": True},
    "dense, all kept, shifted windows, more than one tile": {
        "windows": 2,
        "queries": 25,
        "topk": 99,
        "patterns": 2,
        "bias": False,
    },
    "third dense layer of a chain": {"heads": 1, "queries": 16, "dim": 120, "dim_v": 40, "topk": 16},
    "dense, select": {"windows": 2, "heads": 1, "queries": 9, "dim": 40, "topk": 4, "patterns": 1},
    "dense, select, more than one tile": {"heads": 1, "queries": 25, "topk": 9, "patterns": 1},
    "dense, select, D and Dv beyond one tile": {"heads": 1, "queries": 16, "dim": 70, "dim_v": 70, "topk": 3},
    "dense, keep one, no bias, N is not M": {"queries": 19, "keys": 37, "topk": 1, "bias": False},
    "listed, select": {
        "windows": 2,
        "heads": 1,
        "queries": 25,
        "dim": 40,
        "candidates": 12,
        "topk": 5,
        "projected": True,
    },
    "listed, select, in any order": {"queries": 25, "candidates": 13, "topk": 6, "ascending": False},
    "listed, keep one": {"queries": 25, "candidates": 4, "topk": 1, "index_dtype": torch.int32},
    "listed, all kept, no bias": {
        "queries": 19,
        "keys": 37,
        "dim": 40,
        "candidates": 7,
        "topk": 7,
        "bias": False,
    },
    "listed, picked from dense tiles": {"heads": 1, "queries": 81, "candidates": 70, "topk": 33},
    "listed, all keys, all kept": {"queries": 16, "candidates": 16, "topk": 99},
    "no windows": {"windows": 0, "queries": 16, "dim": 40, "topk": 5},
    "no windows, listed": {"windows": 0, "queries": 16, "candidates": 5, "topk": 5},
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_layer(case, dtype):
    assert_passed(check_layer(get("triton"), random_layer(dtype, **case), train=True))


WIDE = {"rows of 1100": {"heads": 1, "queries": 3, "keys": 1100, "dim": 20, "topk": 7, "bias": False}}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(WIDE))
def test_selection_from_rows_wider_than_1024(case, dtype, monkeypatch):
    """On a GPU rows that wide are rank-one updates (dim 0) instead of matrix products; here too, with few queries."""
    if INTERPRETED:
        monkeypatch.setenv("PFT_TRITON_CONFIG", '{"attention_select": {"dim": 0}}')
    assert_passed(check_layer(get("triton"), random_layer(dtype, **case), train=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of what is tested here
@pytest.mark.parametrize(
    ("case", "dtype"), with_dtypes({f"{c} -> {topk}": (c, topk) for c in (0, 9) for topk in (16, 5)})
)
def test_a_bad_query_row_spoils_its_own_row_alone(case, dtype):
    candidates, topk = case
    check_bad_rows(
        get("triton"), random_layer(dtype, heads=1, queries=16, dim=8, candidates=candidates, topk=topk)
    )


def test_no_heads():
    q, table = torch.zeros(2, 0, 25, 8, device=DEVICE), torch.zeros(81, 0, device=DEVICE, requires_grad=True)
    out, state = pft_bench.progressive_attention(q, q, q, topk=25, bias=table, backend="triton")
    for topk in (6, 4):
        out, state = pft_bench.progressive_attention(
            q, q, q, topk=topk, bias=table, state=state, backend="triton"
        )
    out.sum().backward()
    assert table.grad.shape == (81, 0)


def forward(layer):
    return get("triton").attention_forward(layer)


@pytest.mark.parametrize("candidates", [0, 16])
def test_ties_go_to_the_smaller_key_position(candidates):
    """All logits equal: a threshold alone cannot decide; -0 and +0 are equal too."""
    layer = random_layer(
        torch.float32, queries=16, candidates=candidates, topk=6, bias=False, ascending=False
    )
    zero = torch.zeros_like(layer.q)
    zero[..., ::2, :] = -0.0
    logits = None if layer.logits is None else torch.zeros_like(layer.logits)
    layer = Layer(zero, layer.k, layer.v, None, None, layer.index, logits, 1.0, 0.0, 6)
    _, index, _, _ = forward(layer)
    assert torch.equal(index, torch.arange(6, dtype=index.dtype, device=DEVICE).expand_as(index))


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_selection_over_the_whole_range_of_float32(magnitude):
    """Keys of the bisection are ordered across signs and exponents: q = 1, k = the logits themselves."""
    k = magnitude * normal(1, 1, 64, 1, seed=7).abs().pow(4) * normal(1, 1, 64, 1, seed=8).sign()
    q, v = torch.ones(1, 1, 16, 1, device=DEVICE), normal(1, 1, 64, 13)
    _, index, _, _ = forward(Layer(q, k, v, None, None, None, None, 1.0, 0.0, 10))
    expected = reference.kept_positions(k[..., 0].expand(1, 16, 64), 10).view(1, 1, 16, 10)
    assert torch.equal(index.long(), expected)


@pytest.mark.parametrize("case", ["dense, select", "listed, select"])
def test_repeats_exactly(case):
    layer = random_layer(torch.float16, **{**CASES[case], "windows": 1, "heads": 1})
    backend = get("triton")

    def run():
        out, index, logits, lse = forward(layer)
        grads = backend.attention_backward(layer, out, logits, index, out, lse)
        return [out, index, logits, lse, *(grad for grad in grads if grad is not None)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_kept_rows_are_ascending_and_out_is_token_major():
    layer = random_layer(torch.float32, queries=25, candidates=13, topk=6, ascending=False)
    out, index, _, _ = forward(layer)
    assert bool((index[..., 1:] > index[..., :-1]).all())
    assert out.transpose(1, 2).is_contiguous()
