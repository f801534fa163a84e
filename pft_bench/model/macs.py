"""The published count of multiply-accumulates, and the number of parameters.

The count is a convention, not a cost: it leaves out softmax, top-k, gathers, the bias and all but one of the
convolutions of "3conv", counts windows without padding, and takes the candidates of layer l to be num_topk[l - 2]. It
is here so that the published tables can be reproduced; `pft_bench.harness.problem` counts what an algorithm must do.
"""

from __future__ import annotations

import functools

import torch

from .config import PFTConfig
from .factorized import RANK
from .pft import PFT
from .upsamplers import FEATURES

# The low-resolution (width, height) that the published tables use: 1280x720 divided by the scale, rounded down.
PUBLISHED_LR: dict[int, tuple[int, int]] = {2: (640, 360), 3: (426, 240), 4: (320, 180)}


def published_macs(config: PFTConfig, height: int, width: int) -> int:
    """Multiply-accumulates of one forward pass at an input of height x width, as the authors count them.

    Source: the `flops` methods of the published code. Exact for the published configurations.
    """
    dim, kernel_area = config.embed_dim, config.convffn_kernel_size**2
    per_token = 27 * dim + 9 * dim * dim * len(config.depths) + 3 * dim * dim
    if config.patch_norm:
        per_token += dim
    for layer in range(len(config.num_topk)):
        per_token += 4 * dim * dim + attention_macs(config, layer)
        per_token += 2 * dim * config.hidden_dim + kernel_area * (config.hidden_dim + dim)
    return height * width * (per_token + _upsampler_macs(config))


def attention_macs(config: PFTConfig, layer: int) -> int:
    """Multiply-accumulates of q.k and A.v of one layer (over all blocks) for each token.

    For other attentions than the published one, the same convention applied to what they compute and keep.
    """
    computed, kept = layer_products(config)[layer]
    if config.attention == "pfa":  # published: two dense layers, whatever they keep
        area, topk = config.window_size**2, config.num_topk
        computed, kept = (area, area) if layer < 2 else (topk[layer - 2], topk[layer])
    features = config.num_heads * RANK * computed if config.attention == "rank-factorized" else 0
    return config.embed_dim * (computed + kept) + features


def layer_products(config: PFTConfig) -> tuple[tuple[int, int], ...]:
    """(candidates, kept) of every layer: the keys of a row that meet the query, and those that meet the values.

    A candidate counts once, although a dense chain recomputes its earlier layers' products to spare itself the N x N
    map between layers: what is run is counted elsewhere (`counted_flops`).
    """
    area = config.window_size**2
    return tuple(
        {
            "dense": (area, area),
            "progressive": (area, area),
            "topk": (area, kept),
            "compute-then-select": (area, kept),
            "hashed": (kept, kept),
            "rank-factorized": (area, area),
            "pfa": (candidates, kept),
        }[config.attention]
        for candidates, kept in config.along_chains(config.num_topk)
    )


@functools.lru_cache(16)  # a search for the largest input asks for one configuration again and again
def parameter_count(config: PFTConfig) -> int:
    """Learned parameters of a configuration; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in PFT.from_config(config).parameters())


def _upsampler_macs(config: PFTConfig) -> int:
    if config.upsampler == "pixelshuffledirect":
        return 27 * config.embed_dim
    if config.upsampler == "pixelshuffle":
        if config.upscale == 3:
            return 9 * FEATURES * 9 * FEATURES
        # One step's worth for each doubling, all at low resolution.
        return 9 * FEATURES * 4 * FEATURES * (config.upscale.bit_length() - 1)
    return 0
