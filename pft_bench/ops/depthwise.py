"""The depthwise convolution of a PFT layer with what follows it, as one op. It has no gradient: it is for inference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import get, require
from ._library import define


def depthwise_gelu_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int, backend: str = "auto"
) -> Tensor:
    """Some rows of ``gelu(depthwise convolution of x + bias) + residual``, with zeros beyond the image.

    Args:
        x: images [B, h, w, C].
        weight: [C, 1, k, k], k odd.
        bias: [C] or None.
        residual: [B, rows, w, C], for the output rows `first_row` to `first_row + rows`.
        first_row: which row of `x` the first of `residual` belongs to.
        backend: a name from `pft_bench.backends()`, or "auto"; `cpu` has a kernel, the others take PyTorch's operators.

    Returns:
        [B, rows, w, C], contiguous.
    """
    chosen = require(backend, x.device, x.dtype)
    if chosen.composite:
        return chosen.depthwise_gelu_add(x, weight, bias, residual, first_row)
    made: Tensor = torch.ops.pft_bench.depthwise_gelu_add(x, weight, bias, residual, first_row, chosen.name)
    return made


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int, backend: str
) -> Tensor:
    return get(backend).depthwise_gelu_add(x, weight, bias, residual, first_row)


define(
    "depthwise_gelu_add(Tensor x, Tensor weight, Tensor? bias, Tensor residual, int first_row, str backend) -> Tensor",
    _run,
)


@torch.library.register_fake("pft_bench::depthwise_gelu_add")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int, backend: str
) -> Tensor:
    return residual.new_empty(residual.shape)


@register_flop_formula(torch.ops.pft_bench.depthwise_gelu_add)
def _flops(
    x_shape: list[int],
    weight_shape: list[int],
    bias_shape: object,
    residual_shape: list[int],
    *_: object,
    **__: object,
) -> int:
    """Those of the convolution, as for PyTorch's own."""
    batch, rows, width, channels = residual_shape
    return 2 * batch * rows * width * channels * weight_shape[-1] * weight_shape[-2]
