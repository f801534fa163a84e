"""Two independent implementations of the same ops, CUDA and Triton, held against each other.

Each is within its bound of the float64 value, so they are within twice the bound of each other. Without a GPU, CUDA
runs in the emulator and Triton in its interpreter.
"""

import pytest
import torch
from triton_cases import DEVICE, DTYPES, normal, random_index, random_layer, runs_kernels, with_dtypes

from pft_bench.backends import get
from pft_bench.harness.check import exact_product, oracle, within

CUDA = "cuda" if DEVICE == "cuda" else "cuda-emu"

pytestmark = [
    runs_kernels,
    pytest.mark.skipif(get(CUDA).available() is not None, reason=str(get(CUDA).available())),
]


def agree(name, one, other, bound):
    result = within(name, one.double(), other.double(), 2 * bound)
    assert result.passed, str(result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype):
    batch, queries, keys, dim, kept = 2, 21, 33, 13, 9
    index = random_index(batch, queries, keys, kept)
    q, x = (normal(batch, queries, dim, dtype=dtype, seed=i) for i in (10, 20))
    k = normal(batch, keys, dim, dtype=dtype, seed=30)
    a = normal(batch, queries, kept, dtype=dtype, seed=40)
    cuda, triton = get(CUDA), get("triton")
    for op, arguments in {
        "sddmm": (q, k, index),
        "spmm": (a, k, index),
        "spmm_transpose": (a, x, index, keys),
    }.items():
        _, bound = exact_product(op, *arguments)
        agree(op, getattr(cuda, op)(*arguments), getattr(triton, op)(*arguments), bound)


@pytest.mark.parametrize(
    ("case", "dtype"),
    with_dtypes({f"{c} -> {topk}": (c, topk) for c, topk in ((0, 16), (0, 5), (9, 9), (9, 4))}),
)
def test_gradients_of_layers(case, dtype):
    """Both get the same results of one forward pass, so that only the backward pass may differ."""
    candidates, topk = case
    layer = random_layer(dtype, queries=16, candidates=candidates, topk=topk)
    out, new_index, new_logits, lse = get(CUDA).attention_forward(layer)
    grad_out = normal(*out.shape, dtype=dtype, seed=7)
    handed = normal(*new_logits.shape, seed=8) if new_logits.shape[-1] else None
    ours, theirs = (
        get(name).attention_backward(layer, grad_out, handed, new_index, out, lse)
        for name in (CUDA, "triton")
    )
    kept = new_index if new_index.shape[-1] else layer.index
    done = oracle.forward(layer, kept)
    if handed is not None:
        handed = torch.zeros_like(done.attn.value).scatter_(-1, kept.long(), handed.double())
    exact = oracle.backward(layer, done, grad_out, handed)
    bounds = (exact.q, exact.k, exact.v, exact.bias, exact.logits)
    for name, one, other, part in zip(("q", "k", "v", "bias", "logits"), ours, theirs, bounds, strict=True):
        assert (one is None) == (other is None) == (part is None)
        if part is not None:
            agree(f"gradient of {name}", one, other, part.bound)


@pytest.mark.parametrize(
    ("case", "dtype"),
    with_dtypes({f"{c} -> {topk}": (c, topk) for c, topk in ((0, 25), (0, 5), (11, 11), (11, 4))}),
)
def test_layers(case, dtype):
    candidates, topk = case
    layer = random_layer(dtype, candidates=candidates, topk=topk)
    ours = get(CUDA).attention_forward(layer)
    theirs = get("triton").attention_forward(layer)
    width = candidates or layer.k.shape[2]
    same_rows = torch.ones(layer.q.shape[:3], dtype=torch.bool)
    kept = layer.index
    if topk < width:
        same_rows = (ours[1] == theirs[1]).all(-1)
        assert (
            same_rows.float().mean() > 0.9
        )  # the rest are rounding ties, which the selection check classifies
        kept = ours[1]
    windows = range(layer.q.shape[0])
    exact = [oracle.forward(layer.window(i), None if kept is None else kept[i : i + 1]) for i in windows]
    agree("out", ours[0][same_rows], theirs[0][same_rows], torch.cat([e.out.bound for e in exact])[same_rows])
    agree("logsumexp", ours[3], theirs[3], torch.cat([e.lse.bound for e in exact]))
