"""The `dense` backend: masked dense attention, the plain PyTorch way to get the same result.

Every layer computes all N x N logits and multiplies an N x N map with the values, whatever K is. This is what
one gets without sparse kernels, and so the baseline of every speed-up.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import reference
from ..common import stages
from ..reference import Layer
from .base import AttentionForward, LayerShape, PlainBackend


@functools.lru_cache(maxsize=8)
def _relative_positions(window_size: int, device: torch.device) -> Tensor:
    """Rows of the bias table for every pair of tokens of a window, [N, N]."""
    with torch.inference_mode(False):  # a cached inference tensor could never be saved for a backward pass
        token = torch.arange(window_size**2, device=device)
        return reference.relative_position(window_size, token.unsqueeze(-1), token)


def dense_logits(layer: Layer) -> Tensor:
    """All logits of a layer, [W, H, N, M], without those of earlier layers; float32 for half-precision q and k."""
    q, k, bias, region = layer.q, layer.k, layer.bias, layer.region
    wide = reference.accumulation_dtype(q.dtype)
    z = (q.to(wide) * layer.scale) @ k.to(wide).transpose(-1, -2)
    # In place from here on: nothing keeps the product, and every N x N map that is not made is time saved.
    if bias is not None:
        # A fake or traced tensor must neither meet a cached real one nor stay in the cache.
        cached = type(q) is Tensor and not torch.compiler.is_compiling()
        positions = _relative_positions if cached else _relative_positions.__wrapped__
        rows = positions(reference.window_side(layer.keys), q.device)
        z += bias.to(z.dtype).t()[:, rows]
    if region is not None:
        differs = region.unsqueeze(-1) != region.unsqueeze(-2)
        mask = differs.to(z.dtype).unsqueeze(1) * -layer.region_penalty
        z.view(-1, region.shape[0], *z.shape[1:]).add_(mask)
    return z


class DenseBackend(PlainBackend):
    """Compute everything, then select."""

    name = "dense"
    summary = "masked dense attention in plain PyTorch: all N x N logits, then select; the baseline"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """All products, then gather."""
        return (q @ k.transpose(-1, -2)).gather(-1, index.long())

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Scatter to an [N, M] map, then multiply."""
        return self._scatter(a, index, v.shape[1]) @ v

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """Scatter to an [N, M] map, then multiply its transpose."""
        return self._scatter(a, index, num_keys).transpose(-1, -2) @ x

    @staticmethod
    def _scatter(a: Tensor, index: Tensor, keys: int) -> Tensor:
        return a.new_zeros((*a.shape[:-1], keys)).scatter(-1, index.long(), a)

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One layer; shapes and meaning as in `pft_bench.reference.attention`."""
        v, index = layer.v, layer.index
        with stages.stage("logits"):
            z = dense_logits(layer)
            if index is not None:
                z = z.gather(-1, index.long())
            if layer.logits is not None:
                z = z + layer.logits
        with stages.stage("select"):
            attn = z.softmax(-1)
            highest = z.amax(-1, keepdim=True)
            lse = (highest - attn.amax(-1, keepdim=True).log()).squeeze(
                -1
            )  # the largest entry is exp(max - lse)
            kept = None if index is None else index.long()
            if layer.selects:
                places = self.select(z.detach(), layer)
                attn, z = attn.gather(-1, places), z.gather(-1, places)
                kept = places if kept is None else kept.gather(-1, places)
            relative = z[..., :0] if kept is None else z - highest
        with stages.stage("av"):
            full = attn if kept is None else self._scatter(attn, kept, layer.keys)
            out = full.to(v.dtype) @ v
        new_index = kept if layer.selects and kept is not None else v.new_empty((*layer.rows, 0))
        return out, new_index.to(reference.index_dtype(layer.keys)), relative, lse

    def select(self, z: Tensor, layer: Layer) -> Tensor:
        """Places [W, H, N, topk] of the kept entries among the candidates of the logits z [W, H, N, C], ascending."""
        return z.topk(layer.topk, dim=-1, sorted=False).indices.sort(-1).values

    def attention_work_bytes(self, shape: LayerShape, threads: int) -> int:
        """N x N maps that exist at once; how many, is measured (for layers that drop at least half or nothing).

        Two maps, and int64 positions where entries are gathered from a map or scattered to one.
        """
        gathered, kept = shape.candidates / shape.tokens, shape.kept / shape.tokens
        selects = shape.kept < shape.candidates
        if shape.candidates == shape.tokens:
            maps = max(3.15, 2 + 4.5 * kept) if selects else 2.15
        else:
            maps = 2 + (2.75 if selects else 4) * gathered
        return int(maps * shape.windows * shape.heads * shape.tokens**2 * 4)
