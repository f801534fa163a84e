"""One layer of progressive attention as an op, and the state that a chain of layers hands on.

With ``z_prev`` the accumulated logits of the layer before in the same chain, a layer computes
``z = z_prev + scale * q.k + bias`` on the kept entries, ``A = softmax(z)``, keeps the topk largest entries of a row
and returns ``sum of kept A_j v_j``. Adding logits is the paper's multiplication of attention maps
(arXiv 2503.20337, eq. 3 to 5) without its division: ``softmax(a) * softmax(b)`` renormalised is ``softmax(a + b)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import empty_gradients, empty_outputs, get, require
from ..backends.base import AttentionForward
from ..reference import Layer, accumulation_dtype, index_dtype
from ._library import define, full_precision, unit_last_stride
from .index import checked_index
from .validate import (
    describe,
    require_count,
    require_index,
    require_nonempty,
    require_number,
    require_same,
    require_shape,
    require_tensor,
)

REGION_PENALTY = 100.0
"""What the shift mask takes off a logit between tokens of different image regions (Swin's value)."""


@dataclass(frozen=True, eq=False)
class ChainState:
    """What one layer hands to the next of its chain. Treat it as opaque; `ChainState.sparse` builds one by hand.

    While nothing has been dropped the chain is dense: the sum of its layers' logits is one attention over
    concatenated queries and keys with the summed bias table, so that no N x N map is kept. Afterwards it is the
    kept index and its logits.
    """

    queries: Tensor | None = None
    """Dense: [W, H, N, m * D] for m layers so far."""
    keys: Tensor | None = None
    """Dense: [W, H, M, m * D]."""
    bias: Tensor | None = None
    """Dense: the sum of the layers' bias tables [T, H]."""
    masked_layers: int = 0
    """Dense: how many of the layers had a region map."""
    scale: float = 1.0
    index: Tensor | None = None
    """Sparse: kept keys [W, H, N, K], ascending, int16 (int32 beyond 32767 keys)."""
    logits: Tensor | None = None
    """Sparse: accumulated logits of the kept keys [W, H, N, K], relative to the row's maximum."""
    num_keys: int = 0
    """Sparse: M, the number of keys that the index was checked against."""
    checked: Tensor | None = None
    """Sparse: the index itself where it is known to be good. Any other one is checked by the layer that gets it."""

    @property
    def is_dense(self) -> bool:
        """Whether every key is still a candidate."""
        return self.index is None

    def copied(self) -> ChainState:
        """The same dense state in memory of its own: queries and keys may be views of something larger."""
        if self.queries is None or self.keys is None:
            return self
        return replace(self, queries=self.queries.clone(), keys=self.keys.clone())

    @classmethod
    def sparse(cls, index: Tensor, logits: Tensor, num_keys: int) -> ChainState:
        """A state from an index [W, H, N, K] (distinct keys, checked here) and logits of the same shape.

        The logits are float32 (float64 for layers in float64).
        """
        require_index(index, "[W, H, N, K]")
        require_tensor("logits", logits, "[W, H, N, K]")
        require_same("logits", logits, "index", index, dtype=False)
        require_shape("logits", logits, index.shape, "[W, H, N, K]")
        require_count("num_keys", num_keys, 1)
        order = index.argsort(-1)
        index = checked_index(index.gather(-1, order), num_keys)
        logits = logits.gather(-1, order).contiguous()
        return cls(index=index, logits=logits, num_keys=num_keys, checked=index)


def progressive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    topk: int,
    state: ChainState | None = None,
    bias: Tensor | None = None,
    region: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ChainState]:
    """One layer of progressive attention for W windows of N tokens and H heads.

    Args:
        q: queries [W, H, N, D], any strides (a view of the qkv projection will do).
        k: keys [W, H, M, D].
        v: values [W, H, M, Dv].
        topk: entries kept in each row; nothing is dropped while it is at least the number of candidates.
        state: what the previous layer of this chain returned, None for the first layer.
        bias: relative position bias table [T, H] with T = (2w-1)^2, for windows of w x w = N = M tokens.
        region: labels [P, N] uint8; window i uses row i % P. Logits between tokens of different labels are lowered
            by 100 (the mask of shifted windows). Used while the chain is dense; what it masks is dropped after.
        scale: factor of the products, default D ** -0.5.
        backend: a name from `pft_bench.backends()`, or "auto".

    Returns:
        (out [W, H, N, Dv] in memory order [W, N, H, Dv], the state for the next layer of the chain).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or values.
        pft_bench.BackendUnavailable: the backend cannot run here; the message says why.
    """
    _validate(q, k, v, bias, region, state)
    topk = require_count("topk", topk, 1)
    scale = q.shape[-1] ** -0.5 if scale is None else require_number("scale", scale)
    chosen = require(backend, q.device, q.dtype)
    if bias is not None:
        bias = bias.to(accumulation_dtype(q.dtype))

    state = ChainState() if state is None else state
    if state.is_dense:
        state = _extend(state, q, k, bias, region, scale)
        assert state.queries is not None
        assert state.keys is not None
        q, k, bias = state.queries, state.keys, state.bias
        region = region if state.masked_layers else None
    else:
        if state.checked is not state.index:  # made by hand
            assert state.index is not None
            assert state.logits is not None
            state = ChainState.sparse(state.index, state.logits, state.num_keys)
        region = None
    penalty = REGION_PENALTY * state.masked_layers
    layer = Layer(q, k, v, bias, region, state.index, state.logits, scale, penalty, topk)
    if _observer is not None:
        _observer(layer)
    if _computer is not None:
        out, index, logits, _ = _computer(layer)
    elif chosen.composite:
        with full_precision(q):
            out, index, logits, _ = chosen.attention_forward(layer)
    else:
        out, index, logits, _ = torch.ops.pft_bench.progressive_attention(*layer.arguments(), chosen.name)
    if logits.shape[-1] == 0:
        return out, state
    kept = state.index if index.shape[-1] == 0 else index
    return out, ChainState(index=kept, logits=logits, num_keys=k.shape[2], checked=kept)


_observer: Callable[[Layer], None] | None = None


@contextmanager
def observe_layers(callback: Callable[[Layer], None]) -> Iterator[None]:
    """Call `callback` with every layer that runs inside this context.

    It is what `Backend.attention_forward` computes on, so that a check or a statistic can use real activations.
    """
    global _observer
    previous, _observer = _observer, callback
    try:
        yield
    finally:
        _observer = previous


_computer: Callable[[Layer], AttentionForward] | None = None


@contextmanager
def compute_layers(callback: Callable[[Layer], AttentionForward]) -> Iterator[None]:
    """Have `callback` compute every layer inside this context, as `Backend.attention_forward` does elsewhere."""
    global _computer
    previous, _computer = _computer, callback
    try:
        yield
    finally:
        _computer = previous


def _extend(
    state: ChainState, q: Tensor, k: Tensor, bias: Tensor | None, region: Tensor | None, scale: float
) -> ChainState:
    """The dense chain `state` with one more layer."""
    masked = state.masked_layers + (region is not None)
    if state.queries is None or state.keys is None:
        return ChainState(queries=q, keys=k, bias=bias, masked_layers=masked, scale=scale)
    if scale != state.scale:
        raise ValueError(
            f"scale must be the same in all dense layers of a chain, got {scale} after {state.scale}"
        )
    if state.masked_layers and region is None:
        raise ValueError("region must be given to every dense layer of a chain that had one, got None")
    if state.bias is not None:
        bias = state.bias if bias is None else state.bias + bias
    return ChainState(
        queries=torch.cat((state.queries, q), -1),
        keys=torch.cat((state.keys, k), -1),
        bias=bias,
        masked_layers=masked,
        scale=scale,
    )


def _validate(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, region: Tensor | None, state: ChainState | None
) -> None:
    require_tensor("q", q, "[W, H, N, D]")
    require_tensor("k", k, "[W, H, M, D]")
    require_tensor("v", v, "[W, H, M, Dv]")
    require_same("k", k, "q", q)
    require_same("v", v, "q", q)
    windows, heads, queries, head_dim = q.shape
    keys = k.shape[2]
    require_shape("k", k, (windows, heads, keys, head_dim), "[W, H, M, D]")
    require_shape("v", v, (windows, heads, keys, v.shape[3]), "[W, H, M, Dv]")
    require_nonempty("the head_dim D of q", head_dim, q)
    require_nonempty("the head_dim Dv of v", v.shape[3], v)
    require_nonempty("the number of keys M", keys, k)
    if bias is not None:
        require_tensor("bias", bias, "[T, H]")
        require_same("bias", bias, "q", q, dtype=False)
        side = math.isqrt(keys)
        if side * side != keys or queries != keys:
            raise ValueError(
                f"bias needs windows of w x w tokens with N = M = w*w, got N = {queries}, M = {keys}"
            )
        require_shape("bias", bias, ((2 * side - 1) ** 2, heads), "[(2w-1)^2, H]")
    if region is not None:
        _validate_region(region, q, keys)
    if state is not None:
        _validate_state(state, q, keys)


def _validate_region(region: Tensor, q: Tensor, keys: int) -> None:
    windows, queries = q.shape[0], q.shape[2]
    if not isinstance(region, Tensor) or region.dim() != 2 or region.dtype != torch.uint8:
        raise ValueError(f"region must be [P, N] uint8, got {describe(region)}")
    require_same("region", region, "q", q, dtype=False)
    require_shape("region", region, (region.shape[0], queries), "[P, N]")
    if queries != keys or region.shape[0] < 1 or windows % region.shape[0]:
        raise ValueError(
            f"region must be [P, N] with N = M and P a divisor of the {windows} windows, got {describe(region)}"
        )


def _validate_state(state: ChainState, q: Tensor, keys: int) -> None:
    if not isinstance(state, ChainState):
        raise TypeError(f"state must be a ChainState or None, got {describe(state)}")
    held = state.queries if state.is_dense else state.index
    if held is None:
        return  # the first layer of a chain
    came_from = state.num_keys if state.keys is None else state.keys.shape[2]
    rows = list(q.shape[:3])
    if list(held.shape[:3]) != rows or came_from != keys:
        raise ValueError(
            f"state must come from a layer with [W, H, N] = {rows} and M = {keys}, "
            f"got {describe(held)} of {came_from} keys"
        )
    if state.is_dense:
        require_same("state", held, "q", q)
        return
    logits = require_tensor("the logits of state", state.logits, "[W, H, N, K]")
    require_shape("the logits of state", logits, held.shape, "[W, H, N, K]")
    for part in (held, logits):
        require_same("state", part, "q", q, dtype=False)
    wanted = accumulation_dtype(q.dtype)
    if logits.dtype != wanted or held.dtype != index_dtype(keys):
        raise TypeError(
            f"state must hold {wanted} logits and an {index_dtype(keys)} index for {q.dtype} layers, "
            f"got {logits.dtype} and {held.dtype}"
        )


def _readable(layer: Layer) -> Layer:
    """As kernels read it: rows side by side in q, k and v, the rest contiguous."""
    products = ("q", "k", "v")
    return layer.with_tensors(
        **{
            name: unit_last_stride(x) if name in products else x.contiguous()
            for name, x in layer.tensors().items()
        }
    )


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *fields, backend = arguments
    return get(backend).attention_forward(_readable(Layer(*fields)))


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
    layer = Layer(*arguments[_GIVEN:-1])
    nothing = layer.q.new_empty(0)
    bias, logits = (
        nothing.clone() if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (layer.bias, layer.logits)
    )
    return *empty_gradients(layer), bias, logits


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.numbers = inputs[_TENSORS:]
    out, new_index, _, lse = output
    ctx.save_for_backward(new_index, out, lse, *inputs[:_TENSORS])


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
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


torch.library.register_autograd("pft_bench::progressive_attention", _backward, setup_context=_setup_context)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Without this, PyTorch would take the gradients of a layer for constants, with a mere warning."""
    raise NotImplementedError(
        f"progressive_attention has no second derivative on backend {ctx.backend!r}: "
        "use backend='dense' or 'reference', or differentiate outside of create_graph"
    )


def _remember_backend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.backend = inputs[-1]


torch.library.register_autograd(
    "pft_bench::progressive_attention_backward", _no_second_derivative, setup_context=_remember_backend
)


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
