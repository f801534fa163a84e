"""NLSN (Mei et al., "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021), with the published keys.

EDSR's residual blocks with five attentions among them. Each hashes the features of all pixels several times, sorts
them by their hash, and attends inside chunks of the sorted list and their neighbours: sparse by the content, without
ever computing a similarity that is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...model.pft import RGB_MEAN

MOST_BUCKETS = 128


def buckets(x: Tensor, rounds: int, count: int) -> Tensor:
    """Hash x [B, L, C] into `count` buckets, `rounds` times: [B, rounds, L] int64.

    A vector falls to the one of count / 2 random directions, or of their opposites, that it is nearest to. The authors
    draw new directions in every call; here they are always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rounds, x.shape[-1], count // 2, generator=generator).to(x.device, x.dtype)
    turned = x.unsqueeze(1) @ directions
    return torch.cat((turned, -turned), -1).argmax(-1)


def chunked_attention(x: Tensor, values: Tensor, codes: Tensor, chunk: int) -> Tensor:
    """Attend inside chunks of x [B, L, C], sorted by `codes` [B, R, L], and those beside them: like `values` [B, L, V].

    Logits are the products of the features with the normalised ones; each of the R sortings is weighed by the sum of
    its exponentials. The last chunk is filled with the end of the list once more, and its neighbour is the first one.
    """
    batch, rounds, length = codes.shape
    chunks = -(-length // chunk)
    place = torch.arange(chunks * chunk, device=x.device)
    place = torch.where(place < length, place, place - (chunks * chunk - length)).clamp(min=0)
    order = codes.argsort(dim=-1, stable=True)
    rows = order[..., place].view(batch, -1)  # of all rounds

    def cut(y: Tensor) -> Tensor:
        y = y.gather(1, rows.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        return y.view(batch, rounds, chunks, chunk, -1)

    def beside(y: Tensor) -> Tensor:
        return torch.cat((y, y.roll(1, 2), y.roll(-1, 2)), 3)

    sorted_x = cut(x)
    z = sorted_x @ beside(functional.normalize(sorted_x, dim=-1, eps=5e-5)).mT
    total = z.logsumexp(-1, keepdim=True)
    out = (z - total).exp() @ beside(cut(values))
    back = order.argsort(dim=-1)  # the place of each pixel in each sorted list
    out, total = (y.flatten(2, 3)[:, :, :length] for y in (out, total))
    out = out.gather(2, back.unsqueeze(-1).expand_as(out))
    weight = total.gather(2, back.unsqueeze(-1)).softmax(1)
    return (out * weight).sum(1)


class NonLocalSparseAttention(nn.Module):
    """Attention over the whole image by hashing, added to its input."""

    def __init__(self, dim: int, chunk: int, rounds: int, share: float) -> None:
        super().__init__()
        self.chunk, self.rounds, self.share = chunk, rounds, share
        self.conv_match = nn.Sequential(nn.Conv2d(dim, dim // 4, 3, padding=1))
        self.conv_assembly = nn.Sequential(nn.Conv2d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        match, values = (conv(x).flatten(2).transpose(1, 2) for conv in (self.conv_match, self.conv_assembly))
        chunks = match.shape[1] // self.chunk
        count = min(max(chunks + chunks % 2, 2), MOST_BUCKETS)
        out = chunked_attention(match, values, buckets(match.detach(), self.rounds, count), self.chunk)
        return out.transpose(1, 2).view_as(x) * self.share + x


class ResidualBlock(nn.Module):
    """Two convolutions, a share of which is added to their input."""

    def __init__(self, dim: int, share: float) -> None:
        super().__init__()
        first, second = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(first, nn.ReLU(), second)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        y: Tensor = self.body(x)
        return y * self.share + x


def mean_shift(sign: int) -> nn.Conv2d:
    """Make the fixed convolution that adds DIV2K's mean colour, or takes it away."""
    conv = nn.Conv2d(3, 3, 1).requires_grad_(False)
    conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    conv.bias.copy_(sign * torch.tensor(RGB_MEAN))  # type: ignore[union-attr]
    return conv


class NLSN(nn.Module):
    """NLSN; the defaults are its authors' for x2.

    Args:
        dim: channels.
        blocks: residual blocks; an attention stands before the first and after each eighth.
        chunk: pixels of a chunk.
        rounds: hashings.
        share: what of each branch is added.
        scale: how many times the image is enlarged, a power of two.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        blocks: int = 32,
        chunk: int = 144,
        rounds: int = 4,
        share: float = 0.1,
        scale: int = 2,
    ) -> None:
        super().__init__()
        body: list[nn.Module] = [NonLocalSparseAttention(dim, chunk, rounds, share)]
        for number in range(1, blocks + 1):
            body.append(ResidualBlock(dim, share))
            if number % 8 == 0:
                body.append(NonLocalSparseAttention(dim, chunk, rounds, share))
        steps: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            steps += [nn.Conv2d(dim, 4 * dim, 3, padding=1), nn.PixelShuffle(2)]
        self.sub_mean, self.add_mean = mean_shift(-1), mean_shift(1)
        self.head = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1))
        self.body = nn.Sequential(*body, nn.Conv2d(dim, dim, 3, padding=1))
        self.tail = nn.Sequential(nn.Sequential(*steps), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge [B, 3, h, w] in 0..1."""
        x = self.head(self.sub_mean(image))
        out: Tensor = self.add_mean(self.tail(self.body(x) + x))
        return out
