"""IPG (Tian et al., "Image Processing GNN: Breaking Rigidity in Super-Resolution", CVPR 2024), with the published keys.

Blocks of layers that aggregate over two graphs in turn, one of neighbours and one over the whole image, which the
block's input decides; `ipg_graph` has both.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...model.layers import DepthwiseConv, convolve, crop, mirror_pad
from ...model.pft import RGB_MEAN, PatchEmbed
from ...model.upsamplers import FEATURES, pixel_shuffle_steps
from .ipg_graph import Grapher, detail, groups, links, samples

CONVOLUTION_SHARE = 0.01
"""The weight of the convolutional branch beside the graph."""

DETAIL_SPREAD = (10.0,)
"""By what the first blocks divide the deviation of the detail from its mean; the later ones leave it."""


class ChannelAttention(nn.Module):
    """Weighs channels by what a bottleneck makes of their means."""

    def __init__(self, dim: int, squeeze: int = 30) -> None:
        super().__init__()
        inner = dim // squeeze
        ends = nn.Conv2d(dim, inner, 1), nn.ReLU(), nn.Conv2d(inner, dim, 1), nn.Sigmoid()
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), *ends)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        return x * self.attention(x)


class ConvolutionBranch(nn.Module):
    """A depthwise and a pointwise convolution, then channel attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.cab = nn.Sequential(depthwise, nn.GELU(), nn.Conv2d(dim, dim, 1), ChannelAttention(dim))


class FeedForward(nn.Module):
    """PFT's feed-forward part with a 3 x 3 depthwise convolution, under the published names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = DepthwiseConv(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, h, w, C] to itself."""
        hidden = functional.gelu(self.fc1(x))
        return cast(Tensor, self.fc2(hidden + self.dwconv(hidden)))


class GraphLayer(nn.Module):
    """Graph aggregation and feed-forward part, both normalised after they ran."""

    def __init__(self, dim: int, heads: int, window: int, sample: int, mlp_ratio: int, spread: bool) -> None:
        super().__init__()
        self.spread = spread
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.grapher = Grapher(dim, heads, window, sample)
        self.mlp = FeedForward(dim, dim * mlp_ratio)
        self.conv_block = ConvolutionBranch(dim)

    def forward(self, x: Tensor, graphs: tuple[Tensor, Tensor]) -> Tensor:
        """Map [B, h, w, C] to itself; `graphs` are the links among neighbours and those over the image."""
        mixed = self.norm1(self.grapher(x, graphs[self.spread], self.spread))
        x = x + mixed + CONVOLUTION_SHARE * convolve(self.conv_block.cab, x)
        return x + self.norm2(self.mlp(x))


class GraphBlock(nn.Module):
    """Decides both graphs on its input, then has layers that use them in turn, a convolution, and its input added."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, sample: int, mlp_ratio: int) -> None:
        super().__init__()
        self.residual_group = nn.Module()
        layers = [GraphLayer(dim, heads, window, sample, mlp_ratio, bool(i % 2)) for i in range(depth)]
        self.residual_group.blocks = nn.ModuleList(layers)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.window, self.sample = window, sample

    def graphs(self, x: Tensor, degree: int, spread: float) -> tuple[Tensor, Tensor]:
        """Decide the links of [B, h, w, C], among neighbours and over the image."""
        with torch.no_grad():
            lost = detail(x)
            mean = lost.mean((1, 2), keepdim=True)
            weight = (mean + (lost - mean) / spread).unsqueeze(-1)
            chosen = []
            for far in (False, True):
                own, budget = (groups(y, self.window, far) for y in (x, weight))
                seen = samples(x, self.window, self.sample, far)
                chosen.append(links(own, seen, budget.squeeze(-1), degree))
            return chosen[0], chosen[1]

    def forward(self, x: Tensor, degree: int, spread: float) -> Tensor:
        """Map [B, h, w, C] to itself."""
        graphs, y = self.graphs(x, degree, spread), x
        for layer in cast(nn.ModuleList, self.residual_group.blocks):
            y = layer(y, graphs)
        return convolve(self.conv, y) + x


class IPG(nn.Module):
    """IPG for super-resolution; the defaults are its authors' for x2.

    Args:
        dim: channels.
        depths: layers of each block.
        heads: attention heads of each layer.
        window: side of a group of pixels.
        sample: side of what a group sees.
        degree: links of a pixel in the mean.
        mlp_ratio: hidden channels of the feed-forward part over `dim`.
        scale: how many times the image is enlarged.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        dim: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: int = 6,
        window: int = 16,
        sample: int = 32,
        degree: int = 256,
        mlp_ratio: int = 4,
        scale: int = 2,
    ) -> None:
        super().__init__()
        self.sample, self.degree, self.scale = sample, degree, scale
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = PatchEmbed(nn.LayerNorm(dim))
        self.layers = nn.ModuleList(
            GraphBlock(dim, depth, heads, window, sample, mlp_ratio) for depth in depths
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, FEATURES, 3, padding=1), nn.LeakyReLU())
        self.upsample = pixel_shuffle_steps(scale)
        self.conv_last = nn.Conv2d(FEATURES, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge [B, 3, h, w] in 0..1; the image is mirrored to multiples of `sample`, as published."""
        height, width = image.shape[2:]
        first = self.conv_first(mirror_pad(image, self.sample) - self.mean)
        x = self.patch_embed(first.permute(0, 2, 3, 1).contiguous())
        for number, block in enumerate(self.layers):
            x = block(x, self.degree, DETAIL_SPREAD[number] if number < len(DETAIL_SPREAD) else 1.0)
        x = self.conv_after_body(self.norm(x).permute(0, 3, 1, 2).contiguous()) + first
        x = self.conv_last(self.upsample(self.conv_before_upsample(x))) + self.mean
        return crop(x, height * self.scale, width * self.scale)
