"""Inputs for the tests of the CPU kernels, and float64 results to hold them against."""

from __future__ import annotations

import torch
from torch import Tensor

from pft_bench import reference
from pft_bench.backends import Layer

EPS = torch.finfo(torch.float32).eps / 2


def as_leaves(case: Layer, dtype: torch.dtype) -> Layer:
    """The same layer in `dtype`; its floating-point tensors are leaves that require a gradient."""
    return case.map(lambda x: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x)


def random_index(generator: torch.Generator, rows: tuple[int, ...], keys: int, kept: int) -> Tensor:
    """Ascending distinct keys, [*rows, kept] int16."""
    places = torch.rand(*rows, keys, generator=generator).topk(kept, -1).indices
    return places.sort(-1).values.to(torch.int16)


def attention(
    windows: int = 2,
    heads: int = 2,
    window_size: int = 4,
    dim: int = 8,
    topk: int = 5,
    candidates: int | None = None,
    *,
    dim_v: int | None = None,
    bias: bool = True,
    regions: int = 0,
    queries: int | None = None,
    keys: int | None = None,
    seed: int = 0,
) -> Layer:
    """A layer; dense unless `candidates` is given. q, k, v are views of one tensor if they can be."""
    g = torch.Generator().manual_seed(seed)
    n, m = queries or window_size**2, keys or window_size**2
    if n == m and dim_v is None:
        q, k, v = torch.randn(windows, n, 3, heads, dim, generator=g).permute(2, 0, 3, 1, 4)
    else:
        q = torch.randn(windows, heads, n, dim, generator=g)
        k = torch.randn(windows, heads, m, dim, generator=g)
        v = torch.randn(windows, m, heads, dim_v or dim, generator=g).transpose(1, 2)
    table = torch.randn((2 * window_size - 1) ** 2, heads, generator=g) if bias else None
    region = torch.randint(0, regions, (2, n), generator=g).to(torch.uint8) if regions else None
    index = logits = None
    if candidates is not None:
        index = random_index(g, (windows, heads, n), m, candidates)
        logits = torch.randn(windows, heads, n, candidates, generator=g)
    return Layer(q, k, v, table, region, index, logits, dim**-0.5, 100.0, topk)


def close(actual: Tensor, expected: Tensor, terms: int, magnitude: Tensor | float) -> None:
    """|actual - expected| <= (terms + 8) u magnitude, the bound of a sum of `terms` products (Higham, ch. 3)."""
    assert actual.shape == expected.shape
    bound = (terms + 8) * EPS * torch.as_tensor(magnitude).double() + 1e-30
    excess = ((actual.double() - expected).abs() / bound).nan_to_num(nan=torch.inf)
    assert actual.numel() == 0 or float(excess.max()) <= 1.0, f"{float(excess.max()):.3g} times the bound"


def expected_forward(case: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return reference.attention(as_leaves(case, torch.float64))
