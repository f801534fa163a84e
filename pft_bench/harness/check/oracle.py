"""Masked dense attention in float64, with the error that finite-precision arithmetic may make at each step.

This is what "equal to dense masked attention" means: every position outside the index is set to -inf in the full
N x M matrix, the softmax runs over it, entries that were not kept are set to zero, and the map is multiplied with
the values. The gradients are written out rather than left to autograd, because their error bounds follow the same
steps. Everything here is float64 and N x M; one window-head at a time keeps it small, and in memory that the allocator
hands out again instead of asking the system for new pages each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference import Layer, accumulation_dtype, relative_position
from .bounds import EXP_ULPS, arithmetic_roundoff, gamma, output_rounding, split_loss, unit_roundoff


@dataclass
class Bounded:
    """A float64 value and the largest error that a correct kernel may make on it, elementwise."""

    value: Tensor
    bound: Tensor


Place = tuple[slice, slice]
"""Where a window-head lies in a tensor [W, H, ...]."""


def window_heads(layer: Layer) -> Iterator[tuple[Place, Layer]]:
    """Each window-head, as a layer of its own."""
    windows, heads = layer.q.shape[:2]
    for w in range(windows):
        for h in range(heads):
            yield (slice(w, w + 1), slice(h, h + 1)), window_head(layer, w, h)


def window_head(layer: Layer, window: int, head: int) -> Layer:
    """The layer of one window-head alone."""
    one, h = layer.window(window), slice(head, head + 1)
    return one.with_tensors(
        **{name: tensor[:, h].detach() for name, tensor in one.tensors().items() if name != "region"}
    )


def logits(layer: Layer, queries: Tensor | None = None) -> Bounded:
    """All logits [1, H, N, M] of one window, -inf outside the index, and the bound of each.

    `queries` [N] are the tokens whose rows the layer holds, where it holds a few only; None: all, in their order.

    ``gamma_(D+3)``: D products, and the additions of bias, region penalty and earlier logit, each bounded by the
    magnitudes that were added. float32 may be multiplied in parts (`split_loss`).
    """
    u = arithmetic_roundoff(layer.q.dtype)
    q, k = layer.q.double(), layer.k.double()
    z = layer.scale * (q @ k.mT)
    magnitude = abs(layer.scale) * (q.abs() @ k.abs().mT)
    keys = k.shape[2]
    if layer.bias is not None:
        token = torch.arange(keys, device=q.device)
        query = (token if queries is None else queries).unsqueeze(-1)
        table = layer.bias.double()[relative_position(math.isqrt(keys), query, token)]
        z, magnitude = z + table.permute(2, 0, 1), magnitude + table.permute(2, 0, 1).abs()
    if layer.region is not None and layer.index is None:
        penalty = layer.region_penalty * (layer.region.unsqueeze(-1) != layer.region.unsqueeze(-2)).double()
        z, magnitude = z - penalty.unsqueeze(1), magnitude + penalty.unsqueeze(1)
    if layer.index is not None:
        places = layer.index.long()
        earlier = torch.full_like(z, -math.inf)
        given = torch.zeros_like(places, dtype=z.dtype) if layer.logits is None else layer.logits.double()
        earlier.scatter_(-1, places, given)
        z = z + earlier
        magnitude = magnitude + earlier.abs().nan_to_num(posinf=0.0)
    bound = gamma(layer.q.shape[-1] + 3, u) * magnitude
    if layer.q.dtype == torch.float32:
        bound = bound + abs(layer.scale) * split_loss(q, k)
    return Bounded(z, bound)


@dataclass
class Forward:
    """One window of a layer in float64: maps are [1, H, N, M], `kept` is the kernel's own selection."""

    z: Bounded
    attn: Bounded
    kept: Tensor
    out: Bounded
    relative: Bounded
    lse: Bounded


def forward(
    layer: Layer, kept_index: Tensor | None, queries: Tensor | None = None, z: Bounded | None = None
) -> Forward:
    """Masked dense attention of one window, given which entries the kernel kept (None: all candidates).

    `queries`: as for `logits`; `z`: those, where somebody has them.

    The relative error of A_j = exp(z_j - lse) is at most that of its own logit, plus the worst logit's (through lse),
    plus the sum's (``gamma_C``) and those of the exponential and logarithm; in half precision the map itself may be
    rounded once more before it is multiplied with the values.
    """
    u = arithmetic_roundoff(layer.q.dtype)
    z = z or logits(layer, queries)
    candidates = layer.k.shape[2] if layer.index is None else layer.index.shape[-1]
    live = z.value.isfinite()
    row_bound = z.bound.masked_fill(~live, 0).amax(-1, keepdim=True)
    row_max = z.value.amax(-1, keepdim=True)
    lse = z.value.logsumexp(-1, keepdim=True)
    lse_bound = row_bound + gamma(candidates + 2 * EXP_ULPS, u) + 2 * u * lse.abs()
    attn = (z.value - lse).exp()
    exponent = z.bound + lse_bound + u * (z.value - lse).abs().masked_fill(~live, 0)
    # Both ends of what exp may see: no entry exceeds 1, and no bound overflows where the logits are huge.
    highest, lowest = (z.value - lse + exponent).exp().clamp_max(1.0), attn * torch.exp(-exponent)
    relative_error = EXP_ULPS * u
    if layer.v.dtype != accumulation_dtype(layer.v.dtype):
        relative_error += unit_roundoff(layer.v.dtype)
    # Far below the row's maximum a float32 exponential underflows to zero: that much is always allowed.
    tiny = torch.finfo(accumulation_dtype(layer.q.dtype)).smallest_normal
    attn_bound = torch.maximum(highest - attn, attn - lowest) + attn * relative_error + tiny

    kept = live if kept_index is None else torch.zeros_like(live).scatter_(-1, kept_index.long(), True)
    number = candidates if kept_index is None else kept_index.shape[-1]
    used, used_bound = attn * kept, attn_bound * kept
    v = layer.v.double()
    out = used @ v
    out_bound = used_bound @ v.abs() + gamma(number + 1, u) * (used @ v.abs())
    relative = z.value - row_max
    relative_bound = z.bound + row_bound + u * relative.abs().masked_fill(~live, 0)
    return Forward(
        z,
        Bounded(attn, attn_bound),
        kept,
        Bounded(out, out_bound + output_rounding(out, layer.v.dtype)),
        Bounded(relative, relative_bound),
        Bounded(lse.squeeze(-1), lse_bound.squeeze(-1)),
    )


@dataclass
class Gradients:
    """Gradients of one window in float64; `bias` is that window's part of the sum."""

    q: Bounded
    k: Bounded
    v: Bounded
    bias: Bounded | None
    logits: Bounded | None


def backward(layer: Layer, done: Forward, grad_out: Tensor, grad_logits: Tensor | None) -> Gradients:
    """The recurrence of a chain for one window: ``G = A * (dA - <A, dA>) + (gradient of the logits handed on)``.

    `grad_logits` is [1, H, N, M], zero outside the kept entries. The logits are handed on relative to their maximum,
    so the first maximum of a row receives minus their sum.
    """
    u = arithmetic_roundoff(layer.q.dtype)
    g, v = grad_out.double(), layer.v.double()
    q, k = layer.q.double(), layer.k.double()
    attn, kept = done.attn.value, done.kept
    d_attn = (g @ v.mT) * kept
    d_magnitude = (g.abs() @ v.abs().mT) * kept
    delta = (g * done.out.value).sum(-1, keepdim=True)
    # out comes as the kernel stored it, so its rounding enters <A, dA> = g . out
    delta_bound = (g.abs() * (done.out.bound + gamma(g.shape[-1], u) * done.out.value.abs())).sum(
        -1, keepdim=True
    )
    grad_z = attn * (d_attn - delta)
    magnitude = attn * (d_magnitude + delta.abs())
    bound = (
        done.attn.bound * (d_attn - delta).abs()
        + attn * (gamma(g.shape[-1] + 2, u) * d_magnitude + delta_bound)
        + gamma(3, u) * magnitude
    )
    in_parts = layer.q.dtype == torch.float32  # which a kernel may multiply so
    if in_parts:
        bound = bound + attn * split_loss(g, v)
    if grad_logits is not None:
        handed = grad_logits.double()
        highest = done.z.value.argmax(-1, keepdim=True)
        first = torch.zeros_like(done.kept).scatter_(-1, highest, True)
        total, total_magnitude = handed.sum(-1, keepdim=True), handed.abs().sum(-1, keepdim=True)
        grad_z = grad_z + handed - total * first
        bound = bound + u * handed.abs() + first * gamma(handed.shape[-1] + 1, u) * total_magnitude
        # where several logits are the maximum as far as can be known, any of them may be the kernel's first
        reach = done.z.bound.gather(-1, highest) + done.z.bound
        maxima = done.z.value >= done.z.value.gather(-1, highest) - reach
        bound = bound + maxima * (maxima.sum(-1, keepdim=True) > 1) * total.abs()
    bound = bound + gamma(2, u) * grad_z.abs()
    if layer.q.dtype != accumulation_dtype(layer.q.dtype):
        bound = bound + unit_roundoff(layer.q.dtype) * grad_z.abs()  # a tensor core takes G in half precision

    def product(matrix: Tensor, error: Tensor, other: Tensor, factor: float) -> Bounded:
        value = factor * (matrix @ other)
        n = matrix.shape[-1]
        limit = error @ other.abs() + gamma(n + 1, u) * (matrix.abs() @ other.abs())
        if in_parts:
            limit = limit + split_loss(matrix, other.mT)
        limit = abs(factor) * limit
        return Bounded(value, limit + output_rounding(value, layer.q.dtype))

    used, used_bound = attn * kept, done.attn.bound * kept
    grad_bias = None
    if layer.bias is not None:
        grad_bias = _table_gradient(layer, Bounded(grad_z, bound))
    grad_previous = None
    if layer.index is not None and layer.logits is not None:
        places = layer.index.long()
        picked, picked_bound = grad_z.gather(-1, places), bound.gather(-1, places)
        grad_previous = Bounded(picked, picked_bound + output_rounding(picked, torch.float32))
    return Gradients(
        product(grad_z, bound, k, layer.scale),
        product(grad_z.mT, bound.mT, q, layer.scale),
        product(used.mT, used_bound.mT, g, 1.0),
        grad_bias,
        grad_previous,
    )


def _table_gradient(layer: Layer, grad_z: Bounded) -> Bounded:
    assert layer.bias is not None
    keys = layer.k.shape[2]
    token = torch.arange(keys, device=layer.q.device)
    rows = relative_position(math.isqrt(keys), token.unsqueeze(-1), token).flatten()
    shape = (layer.bias.shape[0], layer.bias.shape[1])

    def gather(matrix: Tensor) -> Tensor:
        flat = matrix.sum(0).flatten(1).T  # [N * M, H]
        return flat.new_zeros(shape).index_add_(0, rows, flat)

    value, magnitude = gather(grad_z.value), gather(grad_z.value.abs())
    # one table entry sums at most N*M terms of a window; the sum over windows adds one more gamma, by the caller
    u = arithmetic_roundoff(layer.q.dtype)
    return Bounded(value, gather(grad_z.bound) + gamma(keys, u) * magnitude)
