"""Forward-mode derivatives of one layer of progressive attention, in plain PyTorch and the sparse products.

With ``z`` the logits of the candidates and ``A = softmax(z)``, a tangent dz makes ``dA = A (dz - <A, dz>)``. What is
kept stays what it is: selection has no derivative, as on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import reference
from ..reference import Layer, accumulation_dtype


@dataclass(frozen=True)
class Tangents:
    """Those of a layer's inputs; None is zero."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    bias: Tensor | None
    logits: Tensor | None


def layer_tangents(layer: Layer, given: Tangents, new_index: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Tangents of out [W, H, N, Dv] and the new logits [W, H, N, K].

    `new_index` is what the layer kept, of width 0 where it dropped nothing. A dense layer makes maps of
    [W, H, N, M]; a sparse one takes the sparse products of `backend`.
    """
    z, dz = _logits(layer, backend), _logits_tangent(layer, given, backend)
    attn = z.softmax(-1)
    dattn = attn * (dz - (attn * dz).sum(-1, keepdim=True))
    relative = dz - dz.gather(-1, z.argmax(-1, keepdim=True))
    kept = layer.index
    if layer.selects:
        places = _places(new_index, layer)
        attn, dattn, relative = (x.gather(-1, places) for x in (attn, dattn, relative))
        kept = new_index
    out = _weighted(dattn, layer.v, kept, backend)
    if given.v is not None:
        out = out + _weighted(attn, given.v, kept, backend)
    return out.to(layer.v.dtype), relative if layer.handed_on else relative[..., :0]


def _logits(layer: Layer, backend: str) -> Tensor:
    """[W, H, N, C], as `reference.attention` defines them."""
    z = layer.scale * _products(layer.q, layer.k, layer.index, backend) + reference.bias_and_region(layer)
    return z if layer.logits is None else z + layer.logits


def _logits_tangent(layer: Layer, given: Tangents, backend: str) -> Tensor:
    shape = (*layer.rows, layer.candidates)
    dz = torch.zeros(shape, dtype=accumulation_dtype(layer.q.dtype), device=layer.q.device)
    if given.q is not None:
        dz = dz + layer.scale * _products(given.q, layer.k, layer.index, backend)
    if given.k is not None:
        dz = dz + layer.scale * _products(layer.q, given.k, layer.index, backend)
    if given.bias is not None:
        dz = dz + reference.bias_and_region(replace(layer, bias=given.bias, region=None))
    return dz if given.logits is None else dz + given.logits


def _places(new_index: Tensor, layer: Layer) -> Tensor:
    """Where the kept entries stand among the candidates."""
    if layer.index is None:
        return new_index.long()
    candidates = torch.arange(layer.candidates, device=new_index.device).expand(layer.index.shape)
    place_of_key = torch.zeros((*layer.rows, layer.keys), dtype=torch.int64, device=new_index.device).scatter(
        -1, layer.index.long(), candidates
    )
    return place_of_key.gather(-1, new_index.long())


def _products(q: Tensor, k: Tensor, index: Tensor | None, backend: str) -> Tensor:
    """q.k on the candidates, [W, H, N, C]."""
    wide = accumulation_dtype(q.dtype)
    if index is None:
        return q.to(wide) @ k.to(wide).mT
    flat = (q.to(wide).flatten(0, 1), k.to(wide).flatten(0, 1), index.flatten(0, 1))
    made: Tensor = torch.ops.pft_bench.sddmm(*flat, backend) if q.dtype == wide else reference.sddmm(*flat)
    return made.unflatten(0, index.shape[:2])


def _weighted(attn: Tensor, v: Tensor, index: Tensor | None, backend: str) -> Tensor:
    """The rows of v that `index` names (None: all) by their weights, [W, H, N, Dv]."""
    wide = attn.dtype
    if index is None:
        return attn @ v.to(wide)
    flat = (attn.flatten(0, 1), v.to(wide).flatten(0, 1), index.flatten(0, 1))
    made: Tensor = torch.ops.pft_bench.spmm(*flat, backend) if v.dtype == wide else reference.spmm(*flat)
    return made.unflatten(0, index.shape[:2])
