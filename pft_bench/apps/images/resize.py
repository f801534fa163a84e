"""Bicubic resizing as the super-resolution field does it: MATLAB's ``imresize`` with its defaults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def imresize(pixels: Array, size_hw: tuple[int, int], scale: float) -> Array:
    """Resize [h, w] or [h, w, c] by the factor `scale` to `size_hw` rows and columns.

    Keys' cubic with a = -0.5, stretched by 1/scale when reducing (anti-aliasing), weights normalised, the picture
    mirrored at its borders, rows first. As in MATLAB, integers are rounded and clipped after each of the two passes;
    floating-point values are neither. `size_hw` is usually ``ceil(scale * side)``.

    Returns:
        An array of the dtype of `pixels` (float64 is computed with throughout).
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    for axis, length in enumerate(size_hw):
        pixels = _resize_axis(pixels, axis, length, scale)
    return pixels


def _cubic(x: Array) -> Array:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _taps(length: int, out_length: int, scale: float) -> tuple[Array, Array]:
    """Input positions and weights of each output position: two arrays [out_length, taps]."""
    stretch = min(scale, 1.0)
    support = 4 / stretch
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    first = np.floor(centre - support / 2).astype(np.int64)
    positions = first[:, None] + np.arange(math.ceil(support) + 2)
    weights = _cubic(stretch * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = positions % (2 * length)  # ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    return np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored), weights


def _resize_axis(pixels: Array, axis: int, out_length: int, scale: float) -> Array:
    positions, weights = _taps(pixels.shape[axis], out_length, scale)
    moved = np.moveaxis(pixels, axis, 0)
    shape = (out_length, *(1 for _ in moved.shape[1:]))
    total = np.zeros((out_length, *moved.shape[1:]))
    for tap in range(positions.shape[1]):
        total += weights[:, tap].reshape(shape) * moved[positions[:, tap]]
    if np.issubdtype(pixels.dtype, np.integer):
        limits = np.iinfo(pixels.dtype)
        total = np.floor(total.clip(limits.min, limits.max) + 0.5)  # halves go up, as in MATLAB
    return np.ascontiguousarray(np.moveaxis(total, 0, axis)).astype(pixels.dtype)
