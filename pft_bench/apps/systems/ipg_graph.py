"""The graphs of IPG (Tian et al., CVPR 2024): pixels as nodes, each linked to as many others as its detail asks.

A group of 16 x 16 pixels sees a sample of 32 x 32: the neighbourhood of its window, or pixels spread over the whole
image. Before each block the cosine similarities of all pairs are computed, and every pixel keeps the nearest: `degree`
links in the mean, more where the image has detail. Links are a mask over a dense product, as published, so that the
graph spares no work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...model.layers import from_windows, to_windows

NO_LINK = 100.0
"""Taken from the similarity of pixels that are not linked."""


def groups(x: Tensor, window: int, spread: bool) -> Tensor:
    """Cut [B, h, w, C] into groups of window**2 pixels, neighbours or `spread` over the image: [G, window**2, C]."""
    if not spread:
        return to_windows(x, window)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, window, height // window, window, width // window, channels)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, window**2, channels)


def ungroup(x: Tensor, window: int, height: int, width: int, spread: bool) -> Tensor:
    """Undo `groups`: [G, window**2, C] to [B, h, w, C]."""
    if not spread:
        return from_windows(x, window, height, width)
    rows, columns = height // window, width // window
    x = x.reshape(-1, rows, columns, window, window, x.shape[-1])
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, height, width, x.shape[-1])


def samples(x: Tensor, window: int, sample: int, spread: bool) -> Tensor:
    """What each group of `groups` sees of [B, h, w, C]: [G, sample**2, C]; zeros stand beyond the image's edges."""
    batch, height, width, channels = x.shape
    if not spread:
        found = functional.unfold(
            x.permute(0, 3, 1, 2), sample, stride=window, padding=(sample - window) // 2
        )
        return found.view(batch, channels, sample**2, -1).permute(0, 3, 2, 1).reshape(-1, sample**2, channels)
    ratio, rows, columns = sample // window, height // sample, width // sample
    x = x.reshape(batch, sample, rows, sample, columns, channels).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(batch, 1, rows, 1, columns, sample**2, channels)
    return x.expand(-1, ratio, -1, ratio, -1, -1, -1).reshape(-1, sample**2, channels)


def detail(x: Tensor) -> Tensor:
    """What [B, h, w, C] loses when it is halved and enlarged again, summed over channels: [B, h, w]."""
    y = x.permute(0, 3, 1, 2)
    size = y.shape[2:]
    small = functional.interpolate(y, (size[0] // 2, size[1] // 2), mode="bilinear", align_corners=False)
    return (y - functional.interpolate(small, size, mode="bilinear", align_corners=False)).abs().sum(1)


def links(nodes: Tensor, others: Tensor, weight: Tensor, degree: int, steps: int = 8) -> Tensor:
    """Choose the links of `nodes` [G, m, C] to `others` [G, n, C]: a mask [G, m, n].

    Each node may have a share of degree * m links as large as its `weight` [G, m], at least 1. The similarity from
    which it links is found by `steps` bisections, so that the budget is met as nearly as these allow.
    """
    similarity = functional.normalize(nodes, dim=-1) @ functional.normalize(others, dim=-1).mT
    budget = weight / weight.sum(-1, keepdim=True) * (nodes.shape[1] * degree)
    budget = budget.clamp(1, others.shape[1]).unsqueeze(-1)
    low, wall = similarity.amin(-1, keepdim=True), similarity.mean(-1, keepdim=True)
    high = torch.ones_like(low)
    for _ in range(steps):
        many = (similarity > wall).count_nonzero(-1).unsqueeze(-1) > budget
        low, high = torch.where(many, wall, low), torch.where(many, high, wall)
        wall = (low + high) / 2
    return similarity > wall


def linked_attention(q: Tensor, k: Tensor, v: Tensor, linked: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sum v [G, H, n, D] by cosine similarity of q [G, H, m, D] and k over the links [G, m, n]: [G, H, m, D].

    `scale` [H, 1, 1] multiplies the similarities, `bias` [H, m, n] is added.
    """
    bias = torch.where(linked.unsqueeze(1), bias, bias - NO_LINK * scale)
    q, k = functional.normalize(q, dim=-1) * scale, functional.normalize(k, dim=-1)
    return functional.scaled_dot_product_attention(q, k, v, bias, scale=1.0)


class Grapher(nn.Module):
    """Aggregation over the links, with a bias that a small network makes of relative positions."""

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, sample: int) -> None:
        super().__init__()
        self.heads, self.window, self.sample = heads, window, sample
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.proj_group, self.proj_sample = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        side = torch.arange(1 - sample, window, dtype=torch.float32) * 8 / (window - 1)
        side = side.sign() * (side.abs() + 1).log2() / 3
        self.register_buffer(
            "relative_coords_table", torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)[None]
        )
        own, other = (torch.cartesian_prod(*2 * [torch.arange(size)]) for size in (window, sample))
        offset = other[None] - own[:, None] + window - sample + 1
        self.register_buffer(
            "relative_position_index", offset[..., 0] * (window + sample - 1) + offset[..., 1]
        )

    def bias(self) -> Tensor:
        """Bias of every pair of a group and its sample, [H, window**2, sample**2]; negative rows count from the end."""
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.heads)
        return 16 * table[self.relative_position_index].permute(2, 0, 1).sigmoid()

    def forward(self, x: Tensor, linked: Tensor, spread: bool) -> Tensor:
        """Map [B, h, w, C] to itself."""
        q = groups(self.proj_group(x), self.window, spread).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = samples(self.proj_sample(x), self.window, self.sample, spread).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        scale = self.logit_scale.clamp(max=4.6052).exp()
        out = linked_attention(q, k, v, linked, scale, self.bias()).transpose(1, 2).flatten(2)
        return ungroup(self.proj(out), self.window, x.shape[1], x.shape[2], spread)
