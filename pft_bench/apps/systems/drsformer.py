"""DRSformer (Chen et al., "Learning a Sparse Transformer Network for Effective Image Deraining", CVPR 2023).

A U-shaped network that removes rain: its output has the input's size. Attention is among channels, and of each
channel's similarities only the largest are kept, four shares of them at once: all are computed, then some are selected.
The layers have the published state-dict keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...model.layers import mirror_pad
from .drsformer_experts import Experts

SHARES = (1 / 2, 2 / 3, 3 / 4, 4 / 5)
"""Parts of the channels that are kept."""


def selected_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, weights: Tensor) -> Tensor:
    """Attend among channels: q, k, v [B, H, C, L] to [B, H, C, L].

    For each share of `SHARES` a softmax over so many of the largest similarities of a row; their sum, each times its
    one of `weights` [4], is applied to v at once.
    """
    z = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * temperature
    channels = z.shape[-1]
    ranked, place = z.sort(-1, descending=True)
    total = torch.zeros_like(z)
    for share, weight in zip(SHARES, weights, strict=True):
        kept = max(1, int(channels * share))
        total[..., :kept] += weight * ranked[..., :kept].softmax(-1)
    return torch.zeros_like(z).scatter(-1, place, total) @ v


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, C, h, w]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        y: Tensor = self.body(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class SelectedAttention(nn.Module):
    """Projections with 3 x 3 depthwise convolutions around `selected_attention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.attn1, self.attn2, self.attn3, self.attn4 = (nn.Parameter(torch.tensor([0.2])) for _ in SHARES)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        weights = torch.cat((self.attn1, self.attn2, self.attn3, self.attn4))
        out: Tensor = self.project_out(
            selected_attention(q, k, v, self.temperature, weights).flatten(1, 2).view_as(x)
        )
        return out


class MixedScale(nn.Module):
    """The feed-forward part: depthwise convolutions of two sizes, which exchange halves between two rounds."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        twice = 2 * hidden
        self.project_in = nn.Conv2d(dim, twice, 1, bias=False)
        self.dwconv3x3 = nn.Conv2d(twice, twice, 3, padding=1, groups=twice, bias=False)
        self.dwconv5x5 = nn.Conv2d(twice, twice, 5, padding=2, groups=twice, bias=False)
        self.dwconv3x3_1 = nn.Conv2d(twice, hidden, 3, padding=1, groups=hidden, bias=False)
        self.dwconv5x5_1 = nn.Conv2d(twice, hidden, 5, padding=2, groups=hidden, bias=False)
        self.project_out = nn.Conv2d(twice, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        x = self.project_in(x)
        small, large = (conv(x).relu().chunk(2, 1) for conv in (self.dwconv3x3, self.dwconv5x5))
        first = self.dwconv3x3_1(torch.cat((small[0], large[0]), 1)).relu()
        second = self.dwconv5x5_1(torch.cat((small[1], large[1]), 1)).relu()
        out: Tensor = self.project_out(torch.cat((first, second), 1))
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward part, each on the norm of its input and added to it."""

    def __init__(self, dim: int, heads: int, expansion: float = 2.66) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(dim), ChannelNorm(dim)
        self.attn, self.ffn = SelectedAttention(dim, heads), MixedScale(dim, int(dim * expansion))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Resize(nn.Module):
    """A convolution, then pixels into channels (`down`) or channels into pixels."""

    def __init__(self, dim: int, down: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim // 2 if down else dim * 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelUnshuffle(2) if down else nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, 2C, h/2, w/2], or to [B, C/2, 2h, 2w]."""
        y: Tensor = self.body(x)
        return y


class DRSformer(nn.Module):
    """DRSformer; the defaults are its authors'.

    Args:
        dim: channels of the first level, doubled with each of the next three.
        blocks: transformer blocks of each level, on the way down and up; the last level has one way.
        heads: attention heads of each level.
    """

    def __init__(
        self,
        *,
        dim: int = 48,
        blocks: tuple[int, int, int, int] = (4, 6, 6, 8),
        heads: tuple[int, int, int, int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()

        def level(number: int, width: int) -> nn.Sequential:
            return nn.Sequential(*[TransformerBlock(width, heads[number]) for _ in range(blocks[number])])

        one, two, three, four = (dim * 2**number for number in range(4))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 3, padding=1, bias=False)
        self.encoder_level0 = Experts(one)
        self.encoder_level1, self.down1_2 = level(0, one), Resize(one, down=True)
        self.encoder_level2, self.down2_3 = level(1, two), Resize(two, down=True)
        self.encoder_level3, self.down3_4 = level(2, three), Resize(three, down=True)
        self.latent, self.up4_3 = level(3, four), Resize(four, down=False)
        self.reduce_chan_level3 = nn.Conv2d(four, three, 1, bias=False)
        self.decoder_level3, self.up3_2 = level(2, three), Resize(three, down=False)
        self.reduce_chan_level2 = nn.Conv2d(three, two, 1, bias=False)
        self.decoder_level2, self.up2_1 = level(1, two), Resize(two, down=False)
        self.decoder_level1 = level(0, two)
        self.refinement = Experts(two)
        self.output = nn.Conv2d(two, 3, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Restore [B, 3, h, w] in 0..1; it is mirrored to multiples of 8 meanwhile."""
        height, width = image.shape[2:]
        padded = mirror_pad(image, 8)
        one = self.encoder_level1(self.encoder_level0(self.patch_embed.proj(padded)))  # type: ignore[operator]
        two = self.encoder_level2(self.down1_2(one))
        three = self.encoder_level3(self.down2_3(two))
        x = self.up4_3(self.latent(self.down3_4(three)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((x, three), 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), two), 1)))
        x = self.decoder_level1(torch.cat((self.up2_1(x), one), 1))
        restored: Tensor = self.output(self.refinement(x)) + padded
        return restored[..., :height, :width]
