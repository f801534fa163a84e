"""One layer of progressive attention as an op, and the state that a chain of layers hands on.

With ``z_prev`` the accumulated logits of the layer before in the same chain, a layer computes
``z = z_prev + scale * q.k + bias`` on the kept entries, ``A = softmax(z)``, keeps the topk largest entries of a row
and returns ``sum of kept A_j v_j``. Adding logits is the paper's multiplication of attention maps
(arXiv 2503.20337, eq. 3 to 5) without its division: ``softmax(a) * softmax(b)`` renormalised is ``softmax(a + b)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..backends import require
from ..backends.base import AttentionForward
from ..reference import Layer, accumulation_dtype, window_side
from ._attention import run_layer
from ._library import dispatched, full_precision, is_plain
from .chain import ChainState, extended, validate_state
from .validate import (
    describe,
    require_count,
    require_nonempty,
    require_number,
    require_same,
    require_shape,
    require_tensor,
)

REGION_PENALTY = 100.0
"""What the shift mask takes off a logit between tokens of different image regions (Swin's value)."""


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
        state = extended(state, q, k, bias, region, scale)
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
    elif is_plain(layer.tensors().values()):
        out, index, logits, _ = run_layer(layer, chosen.name)
    else:
        out, index, logits, _ = dispatched("progressive_attention", *layer.arguments(), chosen.name)
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
        side = window_side(keys)
        if side * side != keys or queries != keys:
            raise ValueError(
                f"bias needs windows of w x w tokens with N = M = w*w, got N = {queries}, M = {keys} "
                "(by q [W, H, N, D] and k [W, H, M, D])"
            )
        sizes = f"H = {heads}, N = {queries} by q [W, H, N, D]"
        require_shape("bias", bias, ((2 * side - 1) ** 2, heads), "[(2w-1)^2, H]", sizes)
    if region is not None:
        _validate_region(region, q, keys)
    if state is not None:
        validate_state(state, q, keys)


def _validate_region(region: Tensor, q: Tensor, keys: int) -> None:
    windows, queries = q.shape[0], q.shape[2]
    if not isinstance(region, Tensor) or region.dim() != 2 or region.dtype != torch.uint8:
        raise ValueError(f"region must be [P, N] uint8, got {describe(region)}")
    require_same("region", region, "q", q, dtype=False)
    sizes = f"N = {queries} by q [W, H, N, D]"
    require_shape("region", region, (region.shape[0], queries), "[P, N]", sizes)
    if queries != keys or region.shape[0] < 1 or windows % region.shape[0]:
        raise ValueError(
            f"region must be [P, N] with N = M and P a divisor of the {windows} windows, got {describe(region)}"
        )
