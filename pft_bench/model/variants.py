"""Other attentions in PFT's place, on the same weights: the paper's ablation, and the systems it argues against.

Every variant is made of the same op as the full model, so that a difference in time is one of what is computed. With N
tokens in a window and `topk` the focus schedule's value for the layer:

============================  ==================================================================  ==========
name                          a layer                                                             products
============================  ==================================================================  ==========
``dense``                     attends to all tokens, on its own (standard self-attention)         N + N
``topk``                      computes all logits, keeps topk; nothing is handed on               N + topk
``progressive``               adds its logits to those of the chain, keeps all tokens             N + N
``pfa``                       computes what its chain kept, keeps topk of it (the full model)     kept + topk
``compute-then-select``       computes all logits, softmax over the topk largest (DRSformer)      N + topk
``hashed``                    sorts tokens into hash buckets, computes topk neighbours (NLSA)     topk + topk
``rank-factorized``           attends to all tokens, positions inside the product (SST)           N + N
============================  ==================================================================  ==========

The first four are the paper's ablation (arXiv 2503.20337), in its order of rising quality. ``rank-factorized`` takes
the layer's bias as features of `model.factorized`, by PyTorch's flash kernel whatever the backend. Of the other two
systems only the rule by which keys are chosen is taken over: DRSformer (CVPR 2023) applies its own to the attention
between channels; NLSA (CVPR 2021) hashes one embedding of the whole image several times and weighs the rounds, where
here queries and keys of a window are hashed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import ops
from ..common.stages import stage
from ..ops import ChainState
from ..ops.progressive_attention import REGION_PENALTY
from ..reference import accumulation_dtype, index_dtype
from .factorized import factorized_attention


@dataclass(frozen=True)
class VariantInputs:
    """What an attention layer is given: q, k, v [W, H, N, D], bias table [T, H], regions [P, N], its chain's state."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    region: Tensor | None
    state: ChainState | None
    topk: int
    backend: str

    @property
    def tokens(self) -> int:
        """N, the tokens of a window."""
        return self.k.shape[2]

    def attend(
        self, *, topk: int, state: ChainState | None = None, v: Tensor | None = None
    ) -> tuple[Tensor, ChainState]:
        """The op on this layer."""
        return ops.progressive_attention(
            self.q,
            self.k,
            self.v if v is None else v,
            topk=topk,
            state=state,
            bias=self.bias,
            region=self.region,
            backend=self.backend,
        )


def _dense(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    return layer.attend(topk=layer.tokens)[0], ChainState()


def _topk(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    return layer.attend(topk=layer.topk)[0], ChainState()


def _progressive(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    return layer.attend(topk=layer.tokens, state=layer.state)


def _pfa(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    return layer.attend(topk=layer.topk, state=layer.state)


def _compute_then_select(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    """Softmax over the kept entries is the softmax over all of them divided by its sum: one more channel of ones."""
    ones = layer.v.new_ones((*layer.v.shape[:3], 1))
    out, _ = layer.attend(topk=layer.topk, v=torch.cat((layer.v, ones), -1))
    return out[..., :-1] / out[..., -1:], ChainState()


def _hashed(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    if layer.topk >= layer.tokens:
        return _dense(layer)
    with torch.no_grad(), stage("select"):
        index = hashed_neighbours(layer.q, layer.k, layer.topk)
        logits = torch.zeros(index.shape, dtype=accumulation_dtype(layer.q.dtype), device=index.device)
        if layer.region is not None:  # the op masks dense layers only
            windows, heads = index.shape[:2]
            own = layer.region.repeat(windows // layer.region.shape[0], 1)[:, None].expand(-1, heads, -1)
            seen = own.gather(2, index.flatten(2)).view(index.shape)
            logits -= REGION_PENALTY * (seen != own.unsqueeze(-1))
        index = index.to(index_dtype(layer.tokens)).contiguous()
        state = ChainState(index=index, logits=logits, num_keys=layer.tokens, checked=index)
    return layer.attend(topk=layer.topk, state=state)[0], ChainState()


def _rank_factorized(layer: VariantInputs) -> tuple[Tensor, ChainState]:
    with stage("attention"):
        return factorized_attention(layer.q, layer.k, layer.v, layer.bias, layer.region), ChainState()


def hashed_neighbours(q: Tensor, k: Tensor, count: int) -> Tensor:
    """For each query `count` keys whose hash is near its own: distinct, ascending, [W, H, N, count] int64.

    Queries and keys are sorted by bucket. A group of count / 2 successive queries sees the keys of the same ranks and
    a quarter of `count` on either side, as NLSA's chunks see their neighbours.
    """
    tokens = k.shape[2]
    group = max(1, count // 2)
    groups = -(-tokens // group)
    rotation = _rotation(q.shape[-1], 2 * math.ceil(groups / 2), q.device, q.dtype)
    of_query, of_key = (_bucket(x, rotation).sort(dim=-1, stable=True).indices for x in (q, k))
    first = torch.arange(groups, device=q.device) * group - (count - group) // 2
    ranks = first.clamp(0, tokens - count)[:, None] + torch.arange(count, device=q.device)  # [groups, count]
    keys = of_key[..., ranks].sort(dim=-1).values  # [W, H, groups, count]
    rows = keys.repeat_interleave(group, dim=2)[:, :, :tokens]  # of the sorted queries
    index = torch.empty_like(rows)
    return index.scatter_(2, of_query.unsqueeze(-1).expand_as(rows), rows)


def _bucket(x: Tensor, rotation: Tensor) -> Tensor:
    """Spherical hashing: which of the rotated axes, or their opposites, a vector is nearest to."""
    turned = x @ rotation
    return torch.cat((turned, -turned), -1).argmax(-1)


@lru_cache(maxsize=32)
def _rotation(dim: int, buckets: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Half as many random directions as buckets, [dim, buckets / 2]: the same in every layer and on every machine."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(dim, buckets // 2, generator=generator).to(device, dtype)


VARIANTS: dict[str, Callable[[VariantInputs], tuple[Tensor, ChainState]]] = {
    "dense": _dense,
    "topk": _topk,
    "progressive": _progressive,
    "pfa": _pfa,
    "compute-then-select": _compute_then_select,
    "hashed": _hashed,
    "rank-factorized": _rank_factorized,
}
