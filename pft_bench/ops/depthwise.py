"""The depthwise convolution of a PFT layer with what follows it, as one op. It has no gradient: it is for inference."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import get, require
from ._autograd import one_by_one, register_derivatives
from ._library import define, dispatched, is_plain, unit_last_stride
from .validate import describe, require_count, require_same, require_shape, require_tensor


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

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
        pft_bench.BackendUnavailable: the backend cannot run here; the message says why.
        NotImplementedError: on the way back, for a gradient through a backend's kernel.
    """
    require_tensor("x", x, "[B, h, w, C]")
    require_tensor("weight", weight, "[C, 1, k, k]")
    require_tensor("residual", residual, "[B, rows, w, C]")
    batch, height, width, channels = x.shape
    kernel = weight.shape[-1]
    require_shape("weight", weight, (channels, 1, kernel, kernel), "[C, 1, k, k]")
    if kernel % 2 == 0:
        raise ValueError(f"weight must have an odd side k, got {describe(weight)}")
    require_shape("residual", residual, (batch, residual.shape[1], width, channels), "[B, rows, w, C]")
    require_same("weight", weight, "x", x)
    require_same("residual", residual, "x", x)
    if bias is not None:
        require_tensor("bias", bias, "[C]")
        require_shape("bias", bias, (channels,), "[C]")
        require_same("bias", bias, "x", x)
    require_count("first_row", first_row, 0)
    if first_row + residual.shape[1] > height:
        raise ValueError(
            f"first_row must leave the {residual.shape[1]} rows of residual inside the {height} of x, got {first_row}"
        )
    chosen = require(backend, x.device, x.dtype)
    if chosen.composite:
        return chosen.depthwise_gelu_add(x, weight, bias, residual, first_row)
    inputs = (x, weight, bias, residual, first_row, chosen.name)
    if is_plain([x for x in inputs if isinstance(x, Tensor)]):
        return _run(*inputs)
    made: Tensor = dispatched("depthwise_gelu_add", *inputs)
    return made


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int, backend: str
) -> Tensor:
    x, residual = unit_last_stride(x), unit_last_stride(residual)
    bias = None if bias is None else bias.contiguous()
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


def _no_derivative(ctx: Any, *_: Tensor | None) -> Any:
    raise NotImplementedError(
        "depthwise_gelu_add has no gradient: a model computes it under torch.no_grad() alone; backend 'dense' has one"
    )


register_derivatives(
    "depthwise_gelu_add",
    save=lambda ctx, inputs, output: None,
    backward=_no_derivative,
    jvp=_no_derivative,
)
torch.library.register_vmap(
    "pft_bench::depthwise_gelu_add", partial(one_by_one, torch.ops.pft_bench.depthwise_gelu_add)
)


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
