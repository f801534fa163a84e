"""Timings of the ops with pytest-benchmark; each asserts the answer that it has timed.

Skipped in a normal run (--benchmark-skip); `pytest tests/benchmarks --benchmark-only` runs them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import BACKENDS

from pft_bench.backends import get
from pft_bench.harness.check import exact_product, within
from pft_bench.harness.problem import Problem

TIMED = [name for name in ("dense", "cpu") if name in BACKENDS]


def problem(op: str, candidates: int, kept: int) -> Problem:
    """One window of the classical model: 6 heads, 1024 tokens, head_dim 40."""
    return Problem(op, windows=1, heads=6, tokens=1024, head_dim=40, candidates=candidates, kept=kept)


@pytest.mark.parametrize("kept", [16, 64, 256])
@pytest.mark.parametrize("op", ["sddmm", "spmm"])
@pytest.mark.parametrize("backend", TIMED)
def test_product(benchmark: Any, backend: str, op: str, kept: int) -> None:
    left, right, index = problem(op, kept, kept).inputs().values()
    got = benchmark(getattr(get(backend), op), left, right, index)
    exact, bound = exact_product(op, left, right, index)
    result = within(op, got, exact, bound)
    assert result.passed, str(result)


@pytest.mark.parametrize("backend", TIMED)
def test_transposed_product(benchmark: Any, backend: str) -> None:
    a, v, index = problem("spmm", 64, 64).inputs().values()
    got = benchmark(get(backend).spmm_transpose, a, v, index, 1024)
    exact, bound = exact_product("spmm_transpose", a, v, index, 1024)
    result = within("spmm_transpose", got, exact, bound)
    assert result.passed, str(result)


@pytest.mark.parametrize(
    ("candidates", "kept"), [(1024, 1024), (1024, 256), (256, 256), (256, 128), (16, 16)]
)
@pytest.mark.parametrize("backend", TIMED)
def test_layer(benchmark: Any, backend: str, candidates: int, kept: int) -> None:
    layer = problem("attention", candidates, kept).layer()
    wide = layer.map(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        out, index, _, lse = benchmark(get(backend).attention_forward, layer)
        exact = get("dense").attention_forward(wide)
    torch.testing.assert_close(lse.double(), exact[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), exact[0], rtol=1e-4, atol=1e-4)
    if index.numel():  # nearly equal logits may be chosen differently in float32
        assert float((index != exact[1]).any(-1).float().mean()) < 0.01
