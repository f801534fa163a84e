"""PSNR and SSIM as super-resolution papers report them: on Y of YCbCr, borders cropped, images of 8 bits."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, which has to lie inside the image."""


def luma(pixels: Tensor) -> NDArray[np.float64]:
    """Y of BT.601 in 16..235, not rounded: [h, w, 3] uint8 RGB to [h, w] float64 (MATLAB's rgb2ycbcr, BasicSR)."""
    from skimage.color import rgb2ycbcr

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
    y: NDArray[np.float64] = rgb2ycbcr(pixels.numpy(force=True))[..., 0]
    return y


def psnr_y(restored: Tensor, target: Tensor, border: int) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, of [h, w, 3] uint8 images less `border` pixels on each side.

    Infinite for equal images.
    """
    from skimage.metrics import peak_signal_noise_ratio

    first, second = _cropped(restored, target, border)
    if np.array_equal(first, second):
        return math.inf
    return float(peak_signal_noise_ratio(second, first, data_range=255))


def ssim_y(restored: Tensor, target: Tensor, border: int) -> float:
    """Structural similarity (Wang et al. 2004) of [h, w, 3] uint8 images less `border` pixels on each side.

    Gaussian window of 11x11 and sigma 1.5, only where it lies inside the image; K1 = 0.01, K2 = 0.03, range 255.
    """
    from skimage.metrics import structural_similarity

    first, second = _cropped(restored, target, border)
    if min(first.shape) < SSIM_WINDOW:
        raise ValueError(
            f"images must be at least {SSIM_WINDOW} pixels wide and high without their borders of {border}, "
            f"got {first.shape[0]}x{first.shape[1]}"
        )
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(first, second, data_range=255, **gaussian))


def _cropped(
    restored: Tensor, target: Tensor, border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if restored.shape != target.shape:
        raise ValueError(f"images must have one size, got {list(restored.shape)} and {list(target.shape)}")
    height, width = target.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"border must leave some of {height}x{width} pixels, got {border}")
    inside = (slice(border, height - border), slice(border, width - border))
    return luma(restored)[inside], luma(target)[inside]
