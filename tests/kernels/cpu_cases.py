"""An index for the tests of the CPU kernels, and float64 results to hold them against."""

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


def close(actual: Tensor, expected: Tensor, terms: int, magnitude: Tensor | float) -> None:
    """|actual - expected| <= (terms + 8) u magnitude, the bound of a sum of `terms` products (Higham, ch. 3)."""
    assert actual.shape == expected.shape
    bound = (terms + 8) * EPS * torch.as_tensor(magnitude).double() + 1e-30
    excess = ((actual.double() - expected).abs() / bound).nan_to_num(nan=torch.inf)
    assert actual.numel() == 0 or float(excess.max()) <= 1.0, f"{float(excess.max()):.3g} times the bound"


def expected_forward(case: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return reference.attention(as_leaves(case, torch.float64))
