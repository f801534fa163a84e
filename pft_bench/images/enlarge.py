"""A picture through a super-resolution model: what becomes of grey, of alpha and of the number of bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import Picture
from .resize import imresize

Array = np.ndarray[Any, Any]

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the grey of BT.601."""


def enlarge(
    picture: Picture,
    restore: Callable[[Tensor], Tensor],
    scale: int,
    *,
    channels: int = 3,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Picture:
    """Enlarge a picture with `restore`, which maps [b, channels, h, w] in 0..1 to `scale` times the size.

    Grey stays grey, 16 bits stay 16 bits, the profile stays. A model of three channels sees grey three times over, a
    model of one channel sees the planes of a colour picture one by one. Alpha is enlarged bicubically; pixels that
    cannot be seen at all take the colour of the nearest visible one before, so that no hidden colour bleeds into
    the edge.

    Raises:
        ValueError: the model's output has another size, or is not finite (an overflow of float16).
    """
    colour = picture.pixels if picture.alpha is None else _fill_hidden(picture.pixels, picture.alpha)
    planes = torch.from_numpy(colour.astype(np.float32) / picture.peak).permute(2, 0, 1)
    grey = planes.shape[0] == 1
    if channels == 1:
        x = planes.unsqueeze(1)
    else:
        x = planes.expand(channels, -1, -1).unsqueeze(0)
    y = restore(x.to(device, dtype).contiguous()).float().cpu()
    height, width = (side * scale for side in picture.size_hw)
    if y.shape != (*x.shape[:2], height, width):
        raise ValueError(f"the model must return {[*x.shape[:2], height, width]}, got {list(y.shape)}")
    if not bool(y.isfinite().all()):
        raise ValueError(f"the model's output holds values that are not finite in {dtype}")
    y = y[:, 0] if channels == 1 else y[0]
    if grey and channels == 3:
        y = torch.tensordot(torch.tensor(LUMA), y, dims=1).unsqueeze(0)
    pixels = (y.clamp(0, 1) * picture.peak).round().permute(1, 2, 0)
    alpha = None if picture.alpha is None else imresize(picture.alpha, (height, width), scale)
    return Picture(
        np.ascontiguousarray(pixels.numpy().astype(picture.pixels.dtype)), alpha, picture.icc, picture.notes
    )


def _fill_hidden(pixels: Array, alpha: Array) -> Array:
    """Give pixels with alpha 0 the colour of the nearest pixel that shows."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return pixels[rows, columns]
