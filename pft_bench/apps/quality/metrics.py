"""PSNR and SSIM as super-resolution papers report them: on Y of YCbCr, borders cropped, images of 8 bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(pixels: Tensor) -> Tensor:
    """Y of BT.601 in 16..235, not rounded: [h, w, 3] uint8 RGB to [h, w] float64 (MATLAB's rgb2ycbcr, BasicSR)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=pixels.device)
    return pixels.double() @ weights / 255 + 16


def psnr_y(restored: Tensor, target: Tensor, border: int) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, of [h, w, 3] uint8 images less `border` pixels on each side.

    Infinite for equal images.
    """
    first, second = _cropped(restored, target, border)
    mean_square = float((first - second).square().mean())
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def ssim_y(restored: Tensor, target: Tensor, border: int) -> float:
    """Structural similarity (Wang et al. 2004) of [h, w, 3] uint8 images less `border` pixels on each side.

    Gaussian window of 11x11 and sigma 1.5, only where it lies inside the image; K1 = 0.01, K2 = 0.03, range 255.
    """
    first, second = _cropped(restored, target, border)
    if min(first.shape) < _WINDOW:
        raise ValueError(
            f"images must be at least {_WINDOW} pixels wide and high without their borders of {border}, "
            f"got {first.shape[0]}x{first.shape[1]}"
        )
    maps = torch.stack((first, second, first * first, second * second, first * second)).unsqueeze(1)
    mean1, mean2, square1, square2, product = _blurred(maps).squeeze(1)
    variances = square1 - mean1**2 + square2 - mean2**2
    covariance = product - mean1 * mean2
    similarity = (2 * mean1 * mean2 + _C1) * (2 * covariance + _C2)
    return float((similarity / ((mean1**2 + mean2**2 + _C1) * (variances + _C2))).mean())


def _cropped(restored: Tensor, target: Tensor, border: int) -> tuple[Tensor, Tensor]:
    if restored.shape != target.shape:
        raise ValueError(f"images must have one size, got {list(restored.shape)} and {list(target.shape)}")
    height, width = target.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"border must leave some of {height}x{width} pixels, got {border}")
    inside = (slice(border, height - border), slice(border, width - border))
    return luma(restored)[inside], luma(target)[inside]


def _blurred(maps: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window /= window.sum()
    return functional.conv2d(functional.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
