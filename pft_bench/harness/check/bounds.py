"""Error bounds of sums and products in finite precision.

A sum of n products evaluated in any order satisfies ``|computed - exact| <= gamma_n * sum |a||b|`` with
``gamma_n = n u / (1 - n u)`` and u the unit roundoff of the arithmetic (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1). Inputs are taken as given: they are already rounded to their dtype.

A kernel may multiply float32 on tensor cores, each number as the sum of three of bfloat16, six of the nine products of
their parts kept. The three left out are at most ``2^-24 |x||y|``: one rounding more for each product. What tensor cores
cut off when they align addends shows in the products of high parts alone, as the others have a sum of their own. Both
lie far within gamma_n in every case that was tried (tests/kernels/test_cuda_split.py), so they get no allowance. What
does is `split_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import accumulation_dtype

EXP_ULPS = 4
"""Roundings allowed to one exponential: its own few units in the last place and those of its argument's reduction."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of `dtype` at 1: the relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, u: float) -> float:
    """``n u / (1 - n u)``; raises where the bound says nothing (n u >= 1)."""
    if n * u >= 1:
        raise ValueError(f"gamma_n needs n * u < 1, got n = {n}, u = {u}")
    return n * u / (1 - n * u)


def arithmetic_roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff of the arithmetic that a kernel for `dtype` tensors must use."""
    return unit_roundoff(accumulation_dtype(dtype))


SPLIT_LOST = 2.0**-134
"""Largest error of writing a float32 number below 2^-110 as three bfloat16 numbers: bfloat16 has no positive number
below 2^-133, so that the third is rounded to a multiple of it."""


def split_loss(x: Tensor, y: Tensor) -> Tensor:
    """Bound of what the products ``x @ y^T`` lose where their operands' parts are subnormal bfloat16 numbers.

    x [..., N, D] and y [..., M, D] in float64; the result is [..., N, M]. It is far below any rounding unless a number
    below 2^-110 meets one so large that their product matters.
    """
    return SPLIT_LOST * (x.abs().sum(-1).unsqueeze(-1) + y.abs().sum(-1).unsqueeze(-2))


def output_rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding `exact` to `dtype` may add: relative for normal numbers, absolute below the smallest of them."""
    return unit_roundoff(dtype) * exact.abs() + torch.finfo(dtype).smallest_normal
