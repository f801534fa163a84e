"""The state that a chain of layers of progressive attention hands on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..reference import accumulation_dtype, index_dtype
from .index import Index, checked_index
from .validate import (
    describe,
    require_count,
    require_index,
    require_same,
    require_shape,
    require_tensor,
)


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
    def sparse(cls, index: Tensor | Index, logits: Tensor, num_keys: int | None = None) -> ChainState:
        """A state from an index [W, H, N, K] (distinct keys, checked here unless an `Index`) and logits of that shape.

        The logits are float32 (float64 for layers in float64). An `Index` knows `num_keys`; other indices need it.
        """
        if isinstance(index, Index):
            places, num_keys = index._places, _agreed(index, num_keys)
        else:
            places, num_keys = index, require_count("num_keys", num_keys, 1)
        require_index(places, "[W, H, N, K]")
        require_tensor("logits", logits, "[W, H, N, K]")
        require_same("logits", logits, "index", places, dtype=False)
        require_shape("logits", logits, places.shape, "[W, H, N, K]")
        if isinstance(index, Index) and index.ascends:
            logits = logits.contiguous()
        else:
            order = places.argsort(-1)
            places, logits = places.gather(-1, order).contiguous(), logits.gather(-1, order).contiguous()
            if not isinstance(index, Index):
                places = checked_index(places, num_keys)
        return cls(index=places, logits=logits, num_keys=num_keys, checked=places)


def _agreed(index: Index, num_keys: int | None) -> int:
    if num_keys is not None and num_keys != index.num_keys:
        raise ValueError(f"num_keys must be that of the Index, {index.num_keys}, got {num_keys}")
    return index.num_keys


def extended(
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


def validate_state(state: object, q: Tensor, keys: int) -> None:
    """Raise unless a layer with queries q [W, H, N, D] and M = `keys` may go on from `state`."""
    if not isinstance(state, ChainState):
        both = isinstance(state, tuple) and any(isinstance(part, ChainState) for part in state)
        hint = ": `out, state = progressive_attention(...)` returns both" if both else ""
        raise TypeError(f"state must be a ChainState or None, got {describe(state)}{hint}")
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
