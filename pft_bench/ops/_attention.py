"""One layer of progressive attention as an op of PyTorch: schema, shapes, derivatives, vmap and FLOP count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import empty_gradients, empty_outputs, get
from ..backends.base import AttentionForward
from ..reference import Layer
from ._autograd import Grads, InDims, in_front, one_by_one, register_derivatives
from ._library import define, full_precision, unit_last_stride
from ._tangents import Tangents, layer_tangents


def _readable(layer: Layer) -> Layer:
    """As kernels read it: rows side by side in q, k and v, the rest contiguous."""
    products = ("q", "k", "v")
    return layer.with_tensors(
        **{
            name: unit_last_stride(x) if name in products else x.contiguous()
            for name, x in layer.tensors().items()
        }
    )


def run_layer(layer: Layer, backend: str) -> AttentionForward:
    """Compute a layer by the kernels of `backend`; without rows there is nothing to compute, nor a kernel asked."""
    if 0 in layer.rows:
        return empty_outputs(layer)
    return get(backend).attention_forward(_readable(layer))


def _run(*arguments: Any) -> AttentionForward:
    *fields, backend = arguments
    return run_layer(Layer(*fields), backend)


def _run_backward(
    grad_out: Tensor,
    grad_logits: Tensor | None,
    new_index: Tensor,
    out: Tensor,
    lse: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *fields, backend = arguments
    layer = Layer(*fields)
    if 0 in layer.rows:
        return tuple(tensor.zero_() for tensor in _empty_backward(layer))  # type: ignore[return-value]
    grad_q, grad_k, grad_v, grad_bias, grad_previous = get(backend).attention_backward(
        _readable(layer),
        unit_last_stride(grad_out),
        None if grad_logits is None else grad_logits.contiguous(),
        new_index,
        out,
        lse,
    )
    nothing = layer.q.new_empty(0)  # an op returns tensors, not None
    return (
        grad_q,
        grad_k,
        grad_v,
        nothing if grad_bias is None else grad_bias,
        nothing.clone() if grad_previous is None else grad_previous,
    )


def _empty_backward(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for what the backward op returns."""
    nothing = layer.q.new_empty(0)
    bias, logits = (
        nothing.clone() if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (layer.bias, layer.logits)
    )
    return *empty_gradients(layer), bias, logits


# An op's arguments are flat: those of a layer come in the order of `Layer.arguments`, then the backend.
_LAYER = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? region, Tensor? index, Tensor? logits, float scale, "
    "float region_penalty, int topk, str backend"
)
_TENSORS = 7
"""Of them q to logits; the numbers and the backend's name follow."""
_GIVEN = 5
"""Arguments of the backward op before them: gradients, and what the forward pass returned."""
define(
    f"progressive_attention({_LAYER}) -> (Tensor out, Tensor new_index, Tensor new_logits, Tensor lse)",
    _run,
)
define(
    "progressive_attention_backward(Tensor grad_out, Tensor? grad_logits, Tensor new_index, Tensor out, Tensor lse, "
    f"{_LAYER}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor grad_previous)",
    _run_backward,
)


@torch.library.register_fake("pft_bench::progressive_attention")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_outputs(Layer(*arguments[:-1]))


@torch.library.register_fake("pft_bench::progressive_attention_backward")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_backward(Layer(*arguments[_GIVEN:-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: AttentionForward) -> None:
    ctx.numbers = inputs[_TENSORS:]
    out, new_index, _, lse = output
    ctx.mark_non_differentiable(new_index, lse)  # logsumexp is for the way back; nothing public returns it
    saved = (new_index, out, lse, *inputs[:_TENSORS])
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _backward(ctx: Any, *grads: Tensor | None) -> Grads:
    grad_out, _, grad_logits, _ = grads
    new_index, out, lse, *tensors = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if grad_logits is not None and grad_logits.shape[-1] == 0:
        grad_logits = None
    grad_q, grad_k, grad_v, grad_bias, grad_previous = torch.ops.pft_bench.progressive_attention_backward(
        grad_out, grad_logits, new_index, out, lse, *tensors, *ctx.numbers
    )
    *_, bias, _, _, logits = tensors
    grad_bias = None if bias is None else grad_bias
    grad_previous = None if logits is None else grad_previous
    return grad_q, grad_k, grad_v, grad_bias, None, None, grad_previous, *(None for _ in ctx.numbers)


def _jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None, Tensor, None]:
    new_index, _, _, *tensors = ctx.saved_tensors
    *numbers, backend = ctx.numbers
    layer = Layer(*tensors, *numbers)
    q, k, v, bias, _, _, logits = tangents[:_TENSORS]
    with full_precision(layer.q):
        out, relative = layer_tangents(layer, Tangents(q, k, v, bias, logits), new_index, backend)
    return out, None, relative, None


register_derivatives("progressive_attention", save=_save, backward=_backward, jvp=_jvp)


def _remember_backend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.backend = inputs[-1]


def _no_second_derivative(ctx: Any, *_: Tensor | None) -> Any:
    """Without this, PyTorch would take the gradients of a layer for constants."""
    raise NotImplementedError(
        f"progressive_attention has no second derivative on backend {ctx.backend!r}: "
        "use backend='dense' or 'reference', or differentiate outside of create_graph"
    )


register_derivatives(
    "progressive_attention_backward",
    save=_remember_backend,
    backward=_no_second_derivative,
    jvp=_no_second_derivative,
)


# A batch is so many more heads: they share the windows' regions, and each has a column of the bias table.


def _as_heads(x: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    """[W, H, ...] or [T, H] of a batch: its elements' heads side by side."""
    front = in_front(x, dim, count)
    return None if front is None else front.movedim(0, 1).flatten(1, 2)


def _vmap_of(name: str, region_at: int) -> Callable[..., tuple[Any, Any]]:
    """A rule for the op `name`, whose argument `region_at` is the regions."""
    op = getattr(torch.ops.pft_bench, name)

    def rule(info: Any, in_dims: InDims, *inputs: Any) -> tuple[Any, Any]:
        if in_dims[region_at] is not None:
            return one_by_one(op, info, in_dims, *inputs)
        folded = (
            _as_heads(x, dim, info.batch_size) if isinstance(x, Tensor) and at != region_at else x
            for at, (x, dim) in enumerate(zip(inputs, in_dims, strict=True))
        )
        results = op(*folded)
        return (
            tuple(x if x.dim() == 1 else x.unflatten(1, (info.batch_size, -1)) for x in results),
            tuple(None if x.dim() == 1 else 1 for x in results),  # one dimension: there is none
        )

    return rule


for _name, _region_at in (("progressive_attention", 4), ("progressive_attention_backward", _GIVEN + 4)):
    torch.library.register_vmap(f"pft_bench::{_name}", _vmap_of(_name, _region_at))


def _products(shapes: tuple[Any, ...]) -> tuple[int, int]:
    """Multiply-adds of q.k over the candidates and of A.v over the kept entries; `shapes` stand for `_LAYER`."""
    (windows, heads, queries, dim), k_shape, v_shape, _, _, index_shape, _, _, _, topk, _ = shapes
    candidates = k_shape[2] if index_shape is None else index_shape[3]
    rows = windows * heads * queries
    return rows * candidates * dim, rows * min(topk, candidates) * v_shape[3]


@register_flop_formula(torch.ops.pft_bench.progressive_attention)
def attention_flops(*shapes: Any, **kwargs: Any) -> int:
    """2 * (candidates * D + kept * Dv) a row: q.k and A.v; softmax and selection are not counted."""
    qk, av = _products(shapes)
    return 2 * (qk + av)


@register_flop_formula(torch.ops.pft_bench.progressive_attention_backward)
def attention_backward_flops(*shapes: Any, **kwargs: Any) -> int:
    """Three products over the candidates (q.k again, dq, dk) and two over the kept entries (dA, dv)."""
    qk, av = _products(shapes[_GIVEN:])
    return 2 * (3 * qk + 2 * av)
