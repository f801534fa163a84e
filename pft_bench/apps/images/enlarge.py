"""A picture through a super-resolution model: what becomes of grey, of alpha and of the number of bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .picture import Picture
from .resize import imresize

Array = np.ndarray[Any, Any]

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the grey of BT.601."""
FAINT = 1 / 32
"""Alpha below which a pixel shows too little (8 levels of 255) for its colour to count where a clearer one is near.

Colours that were multiplied by alpha and divided again, or never multiplied, say nothing there, and are often black.
"""
REACH = 8
"""Pixels over which such a colour matters to the model: what is further from clear pixels keeps its own."""


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

    Grey stays grey, 16 bits stay 16 bits, the profile and the metadata stay. A model of three channels sees grey three
    times over, a model of one channel sees the planes of a colour picture one by one. Alpha is enlarged bicubically;
    pixels that cannot be seen, or hardly, take the colour of the nearest visible one before, so that no hidden colour
    bleeds into the edge.

    `dtype` is the model's; `restore` is given float32 where that has 16 bits.

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
    # 16 bits of a float are fewer grey levels than a picture has.
    y = restore(x.to(device, torch.promote_types(dtype, torch.float32)).contiguous()).float().cpu()
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
    return replace(
        picture, pixels=np.ascontiguousarray(pixels.numpy().astype(picture.pixels.dtype)), alpha=alpha
    )


def _fill_hidden(pixels: Array, alpha: Array) -> Array:
    """Give faint pixels near clear ones the colour of the nearest clear one, then hidden ones that of the nearest."""
    from scipy.ndimage import distance_transform_edt

    faint = alpha < FAINT * np.iinfo(alpha.dtype).max
    if faint.any() and not faint.all():
        distance, (rows, columns) = distance_transform_edt(faint, return_indices=True)
        pixels = np.where((distance <= REACH)[..., None], pixels[rows, columns], pixels)
    hidden = alpha == 0
    if hidden.any() and not hidden.all():
        rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
        pixels = pixels[rows, columns]
    return pixels
