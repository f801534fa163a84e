"""The fused attention of the cpu backend, forward and backward, against the specification in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bad_rows import check_bad_rows
from cpu_cases import EPS, as_leaves, close, expected_forward
from made import LAYERS, layer

from pft_bench import reference
from pft_bench.backends import Layer, get
from pft_bench.backends.base import poisoned
from pft_bench.common import stages

CPU = get("cpu")

CASES: dict[str, dict[str, Any]] = {
    **LAYERS,
    "window not a multiple of a vector, light head_dim": {"tokens": 81, "topk": 81},
    "the same, selects": {"tokens": 81, "topk": 30},
    "rows of a block left over": {"tokens": 49, "dim": 20, "topk": 20},
    "two dense layers joined": {"tokens": 36, "dim": 80, "dim_v": 40, "topk": 36},
    "five vectors and a panel left over": {"tokens": 36, "dim": 81, "dim_v": 83, "topk": 17},
    "the same, sparse": {"tokens": 36, "dim": 81, "dim_v": 83, "candidates": 20, "topk": 17},
    "no bias, keeps all": {"tokens": 64, "bias": False, "topk": 64},
    "two blocks of queries": {"tokens": 70, "keys": 33, "bias": False, "topk": 9},
    "more keys than queries, keeps all": {"tokens": 3, "keys": 200, "bias": False, "topk": 200},
    "published window and head_dim": {"windows": 1, "heads": 1, "tokens": 1024, "dim": 40, "topk": 256},
    "published, sparse": {
        "windows": 1,
        "heads": 1,
        "tokens": 1024,
        "dim": 40,
        "candidates": 256,
        "topk": 128,
    },
}
"""What all backends are tested on, and what decides between paths of these kernels."""


def logit_magnitude(case) -> float:
    """A bound of the sum of absolute terms of any logit."""
    norms = [t.norm(dim=-1).max().item() if t.numel() else 0.0 for t in (case.q, case.k)]
    rest = [t.abs().max().item() for t in (case.bias, case.logits) if t is not None and t.numel()]
    masked = case.region_penalty if case.region is not None else 0.0
    return case.scale * norms[0] * norms[1] + sum(rest) + masked


def check_forward(case, expected):
    with poisoned():
        out, index, logits, lse = CPU.attention_forward(case)
    expected_out, expected_index, expected_logits, expected_lse = expected
    assert out.transpose(1, 2).is_contiguous()
    assert index.dtype == expected_index.dtype
    assert torch.equal(index, expected_index)
    terms = case.q.shape[-1] + 8
    z = logit_magnitude(case)
    close(logits, expected_logits, terms, 2 * z)
    close(lse, expected_lse, terms, z + expected_lse.abs())
    # A softmax weight is off by the error of its logits (twice: numerator and sum), relatively.
    weights = (terms + 8) * 2 * z + case.k.shape[2]
    close(out, expected_out, weights, case.v.abs().max() if case.v.numel() else 0.0)
    return out, index, lse


def terms_of(case, grad_out, grad_logits) -> float:
    """Size of the terms that cancel in a row with a single candidate."""
    return (grad_out.norm() + grad_logits.norm()).item() if min(case.k.shape[2], case.topk) == 1 else 0.0


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_forward_and_backward(options):
    case = layer(**options)
    leaves = as_leaves(case, torch.float64)
    expected_out, expected_index, expected_logits, expected_lse = reference.attention(leaves)
    exact = (expected_out.detach(), expected_index, expected_logits.detach(), expected_lse.detach())
    out, index, lse = check_forward(case, exact)
    g = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=g)
    grad_logits = torch.randn(expected_logits.shape, generator=g)
    loss = (expected_out * grad_out).sum() + (expected_logits * grad_logits).sum()
    loss.backward()
    with poisoned():
        grads = CPU.attention_backward(case, grad_out, grad_logits, index, out, lse)
    single = as_leaves(case, torch.float32)
    out32, _, logits32, _ = reference.attention(single)
    ((out32 * grad_out).sum() + (logits32 * grad_logits).sum()).backward()
    for name, grad in zip(("q", "k", "v", "bias", "logits"), grads, strict=True):
        exact, plain = getattr(leaves, name), getattr(single, name)
        assert (exact is None) == (grad is None), name
        if exact is None or grad is None:
            continue
        assert grad.shape == exact.shape, name
        if not exact.numel() or not out.numel():
            assert not grad.any()
            continue
        # At most twice as far from float64 as PyTorch's own float32, in norm. Roundings are always allowed: of the
        # gradient, and of the terms that cancel in it.
        size = exact.grad.norm().item() + terms_of(case, grad_out, grad_logits)
        allowed = max(2 * (plain.grad.double() - exact.grad).norm().item(), 8 * EPS * size)
        error = (grad.double() - exact.grad).norm().item()
        assert error <= allowed, f"grad_{name}: {error:.3g} > {allowed:.3g} at size {size:.3g}"


def test_without_a_gradient_of_the_logits():
    case = layer(topk=5)
    out, index, logits, lse = CPU.attention_forward(case)
    zero = CPU.attention_backward(case, torch.ones_like(out), torch.zeros_like(logits), index, out, lse)
    none = CPU.attention_backward(case, torch.ones_like(out), None, index, out, lse)
    assert all(torch.equal(a, b) for a, b in zip(zero[:4], none[:4], strict=True))


def test_equal_logits_keep_the_first_keys():
    case = layer(windows=1, heads=1, tokens=64, dim=8, topk=20, bias=False)
    case.q.zero_()
    _, index, logits, _ = CPU.attention_forward(case)
    assert torch.equal(index.long(), torch.arange(20).expand(1, 1, 64, 20))
    assert torch.equal(logits, torch.zeros(1, 1, 64, 20))


@pytest.mark.parametrize("candidates", [None, 60])
def test_ties_around_the_threshold(candidates):
    case = layer(windows=1, heads=2, tokens=64, dim=4, topk=23, bias=False, candidates=candidates)
    case.q.round_(), case.k.round_()  # few distinct logits; -0 and +0 among them
    if case.logits is not None:
        case.logits.round_()
    _, index, _, _ = CPU.attention_forward(case)
    assert torch.equal(index, expected_forward(case)[1])


def test_negative_and_positive_zero_tie():
    q, k = torch.full((1, 1, 1, 1), -1.0), torch.zeros(1, 1, 40, 1)
    k[..., ::2, :] = -0.0
    case = Layer(q, k, torch.randn(1, 1, 40, 3), None, None, None, None, 1.0, 0.0, 9)
    _, index, _, _ = CPU.attention_forward(case)
    assert index.flatten().tolist() == list(range(9))


@pytest.mark.parametrize(
    "options", [{"topk": 16}, {"topk": 5}, {"topk": 9, "candidates": 9}, {"topk": 5, "candidates": 9}]
)
def test_a_bad_query_row_spoils_its_own_row_alone(options):
    check_bad_rows(CPU, layer(windows=1, **options))


@pytest.mark.parametrize("candidates", [None, 20])
def test_the_same_bits_for_any_number_of_threads(candidates):
    case = layer(windows=5, heads=3, tokens=36, dim=13, topk=11, candidates=candidates)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, index, logits, lse = CPU.attention_forward(case)
            ones = torch.ones_like(out), torch.ones_like(logits)
            grads = CPU.attention_backward(case, *ones, index, out, lse)
            results.append((out, index, logits, lse, *(x for x in grads if x is not None)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bias_gradient_of_more_window_heads_than_groups():
    case = layer(windows=150, heads=2, tokens=4, dim=4, topk=4)
    out, index, _, lse = CPU.attention_forward(case)
    leaves = as_leaves(case, torch.float64)
    reference.attention(leaves)[0].sum().backward()
    grad = CPU.attention_backward(case, torch.ones_like(out), None, index, out, lse)[3]
    close(grad, leaves.bias.grad, 150 * 4, 20.0 * 40)
    assert (grad.double() - leaves.bias.grad).abs().max() < 1e3 * EPS * 20


def test_phases_are_reported_to_an_active_recorder():
    case = layer(tokens=64, topk=20)
    with stages.record() as times:
        CPU.attention_forward(case)
    assert {"logits", "select", "av"} <= times.seconds.keys()
    assert "attention" not in times.seconds
