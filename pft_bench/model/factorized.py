"""Attention with its positions inside the product, so that a flash kernel applies: what SST does (arXiv 2603.06738).

SST adds no bias to the logits. It appends positional features of a low rank to queries and keys, whose product is the
bias, and learns them by a small network on Fourier features of the coordinates. Here they follow from the layer's own
bias table: its lowest frequencies, each of which is a product of a function of the query's position and one of the
key's. The cost is the same, and the weights stay PFT's; what the table has in higher frequencies is lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FREQUENCIES = (
    *((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0)),
    *((1, 2), (1, -2), (2, 1), (2, -1), (2, 2), (2, -2)),
)
"""The lowest of a plane, in cycles of a table's side; the mean is left out, for softmax ignores it."""

RANK = 2 * len(FREQUENCIES)
"""Features of a position: with head_dim 40 a width of 64."""

REGIONS = 9
"""Labels of `region_map`."""

_SAME_REGION = 10.0
"""Its square is added where query and key are of one region, which is to take 100 where they are not."""


def position_features(table: Tensor) -> tuple[Tensor, Tensor]:
    """Features of a window's positions as queries and as keys, [H, w*w, RANK] each, from a bias table [(2w-1)^2, H].

    Their product is the table's bias, without its mean and without what exceeds `FREQUENCIES`.
    """
    side = math.isqrt(table.shape[0])
    window = (side + 1) // 2
    cycles = torch.tensor(FREQUENCIES, dtype=table.dtype, device=table.device) * (2 * math.pi / side)
    span, place = (torch.arange(start, window, device=table.device) for start in (1 - window, 0))
    offsets, places = (torch.cartesian_prod(at, at).to(table.dtype) @ cycles.T for at in (span, place))
    real, imaginary = (part.T @ table * (2 / side**2) for part in (offsets.cos(), -offsets.sin()))  # [F, H]
    cos, sin = places.cos(), places.sin()
    real, imaginary = real.T.unsqueeze(1), imaginary.T.unsqueeze(1)  # [H, 1, F]
    keys = torch.cat((real * cos + imaginary * sin, real * sin - imaginary * cos), -1)
    return torch.cat((cos, sin), -1).expand_as(keys), keys


def factorized_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, region: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention of q, k, v [W, H, N, D] with the features of `table` [T, H]: [W, H, N, D].

    Tokens of different `region` [P, N] do not see each other. Values are padded with zeros to the width of queries and
    keys, as the kernel asks, which SST does too.
    """
    shape, dim = q.shape[:3], q.shape[3]
    queries, keys = [q * (dim**-0.5 if scale is None else scale)], [k]
    for side, feature in zip((queries, keys), position_features(table), strict=True):
        side.append(feature.to(q.dtype).expand(*shape, -1))
    if region is not None:
        own = functional.one_hot(region.long(), REGIONS).to(q.dtype) * _SAME_REGION
        own = own.repeat(shape[0] // region.shape[0], 1, 1).unsqueeze(1).expand(*shape, -1)
        queries.append(own)
        keys.append(own)
    wide_q, wide_k = torch.cat(queries, -1), torch.cat(keys, -1)
    wide_v = functional.pad(v, (0, wide_k.shape[-1] - dim))
    return functional.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., :dim]
