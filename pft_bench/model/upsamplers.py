"""The reconstruction heads of PFT: from the deep features [B, C, h, w] to the image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import PFTConfig

FEATURES = 64  # channels between the body and the image


def pixel_shuffle_steps(scale: int) -> nn.Sequential:
    """Make the `upsample` part of 'pixelshuffle': one step of factor 3, or a step of factor 2 for each doubling."""
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    steps: list[nn.Module] = []
    for factor in factors:
        steps += [nn.Conv2d(FEATURES, FEATURES * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*steps)


def direct_step(dim: int, channels: int, scale: int) -> nn.Sequential:
    """Make the `upsample` part of 'pixelshuffledirect': one convolution straight to the image's pixels."""
    return nn.Sequential(nn.Conv2d(dim, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))


def add_upsampler(model: nn.Module, config: PFTConfig) -> None:
    """Give `model` the head's modules. They are attributes of the model itself: so are the published keys."""
    dim, channels, kind = config.embed_dim, config.in_chans, config.upsampler
    if kind == "pixelshuffledirect":
        model.upsample = direct_step(dim, channels, config.upscale)
        return
    if kind == "":
        model.conv_last = nn.Conv2d(dim, channels, 3, padding=1)
        return
    model.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, FEATURES, 3, padding=1), nn.LeakyReLU())
    if kind == "pixelshuffle":
        model.upsample = pixel_shuffle_steps(config.upscale)
    else:
        model.conv_up1 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        model.conv_up2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        model.conv_hr = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        model.lrelu = nn.LeakyReLU(0.2)
    model.conv_last = nn.Conv2d(FEATURES, channels, 3, padding=1)


def reconstruct(model: nn.Module, kind: str, features: Tensor, image: Tensor) -> Tensor:
    """Turn features [B, C, h, w] into the image; `image` is the normalised input, which '' adds to its result."""
    parts = model._modules
    if kind == "pixelshuffledirect":
        return _apply(parts["upsample"], features)
    if kind == "":
        return image + _apply(parts["conv_last"], features)
    x = _apply(parts["conv_before_upsample"], features)
    if kind == "pixelshuffle":
        return _apply(parts["conv_last"], _apply(parts["upsample"], x))
    for name in ("conv_up1", "conv_up2"):
        x = _apply(parts["lrelu"], _apply(parts[name], F.interpolate(x, scale_factor=2, mode="nearest")))
    return _apply(parts["conv_last"], _apply(parts["lrelu"], _apply(parts["conv_hr"], x)))


def _apply(module: nn.Module | None, x: Tensor) -> Tensor:
    assert module is not None
    y: Tensor = module(x)
    return y
