"""One layer of progressive attention in plain PyTorch: the specification that every kernel is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from .layer import Layer, window_side
from .sparse import accumulation_dtype, sddmm, spmm


def relative_position(window_size: int, query: Tensor, key: Tensor) -> Tensor:
    """Row of the bias table for query and key positions in a window (Swin's order: rows of the window first)."""
    dy = query // window_size - key // window_size + window_size - 1
    dx = query % window_size - key % window_size + window_size - 1
    return dy * (2 * window_size - 1) + dx


def bias_and_region(layer: Layer) -> Tensor:
    """What is added to the scaled products besides the earlier logits: broadcastable to [W, H, N, C]."""
    q, index, region = layer.q, layer.index, layer.region
    windows, heads, queries = layer.rows
    wide = accumulation_dtype(q.dtype)
    query = torch.arange(queries, device=q.device).unsqueeze(-1)
    key = torch.arange(layer.keys, device=q.device) if index is None else index.long()
    added = torch.zeros((), dtype=wide, device=q.device)
    if layer.bias is not None:
        rows = relative_position(window_side(layer.keys), query, key)  # [N, M] or [W, H, N, C]
        if index is None:
            added = added + layer.bias.to(wide)[rows].permute(2, 0, 1)
        else:
            head = torch.arange(heads, device=q.device).view(-1, 1, 1)
            added = added + layer.bias.to(wide)[rows, head]
    if region is not None:
        own = region.repeat(-(-windows // region.shape[0]), 1)[:windows]
        differs = own.unsqueeze(-1) != own.unsqueeze(-2)
        added = added - layer.region_penalty * differs.unsqueeze(1).to(wide)
    return added


def kept_positions(z: Tensor, topk: int) -> Tensor:
    """Places along the last dimension of the topk largest entries, ascending; of equal entries the first ones."""
    return z.sort(dim=-1, descending=True, stable=True).indices[..., :topk].sort(dim=-1).values


def index_dtype(keys: int) -> torch.dtype:
    """The smallest index dtype in which `keys` positions can be named."""
    return torch.int16 if keys <= 32767 else torch.int32


def attention(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer: (out [W, H, N, Dv], kept index, logits of the kept entries, logsumexp [W, H, N]).

    ``z = scale * q.k + bias - region penalty + logits`` over the candidates (all keys when `index` is None),
    ``A = softmax(z)``, the `topk` largest entries of a row are kept, ``out = sum of kept A_j v_j`` without
    renormalisation. Logits are handed on relative to their row's maximum. An index of width 0 means: unchanged;
    logits of width 0: the chain is still dense.
    """
    q, k, v, index = layer.q, layer.k, layer.v, layer.index
    wide = accumulation_dtype(q.dtype)
    if index is None:
        products = q.to(wide) @ k.to(wide).transpose(-1, -2)
    else:
        products = sddmm(q.to(wide).flatten(0, 1), k.to(wide).flatten(0, 1), index.flatten(0, 1))
        products = products.unflatten(0, q.shape[:2])
    z = layer.scale * products + bias_and_region(layer)
    if layer.logits is not None:
        z = z + layer.logits
    lse = z.logsumexp(-1)
    attn = z.log_softmax(-1).exp()  # = exp(z - lse), without the rounding of a large lse
    relative = z - z.gather(-1, z.argmax(-1, keepdim=True))

    kept: Tensor | None = None if index is None else index.long()
    if layer.selects:
        places = kept_positions(z.detach(), layer.topk)
        attn, relative = attn.gather(-1, places), relative.gather(-1, places)
        kept = places if index is None else index.long().gather(-1, places)

    if kept is None:
        out = attn @ v.to(wide)
        relative = relative[..., :0]
    else:
        out = spmm(attn.flatten(0, 1), v.to(wide).flatten(0, 1), kept.flatten(0, 1))
        out = out.unflatten(0, q.shape[:2])
    new_index = kept if layer.selects and kept is not None else q.new_empty((*layer.rows, 0))
    return out.to(v.dtype), new_index.to(index_dtype(layer.keys)), relative, lse
