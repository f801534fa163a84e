"""The low-resolution input of a model run: a bundled photograph or the user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BUNDLED = "astronaut"
"""A photograph that scikit-image ships: E. Collins, NASA, public domain."""


def low_resolution(size_hw: tuple[int, int], image: Path | None = None) -> Tensor:
    """A photograph resized to `size_hw`, [1, 3, h, w] float32 in 0..1, anti-aliased.

    It serves as the model's input as it is; no high-resolution counterpart is implied.

    Raises:
        ValueError: the file is not an image that can be read.
    """
    from skimage import color, data, io, transform, util

    if image is None:
        pixels = getattr(data, BUNDLED)()
    else:
        try:
            pixels = io.imread(image)
        except Exception as error:  # imageio raises whatever its plugin does
            raise ValueError(f"image must be a picture that can be read, got {image}: {error}") from error
    if pixels.ndim == 2:
        pixels = color.gray2rgb(pixels)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"image must be grey, RGB or RGBA, got an array of shape {pixels.shape} in {image}")
    pixels = util.img_as_float32(pixels[..., :3])
    resized = transform.resize(pixels, size_hw, order=3, anti_aliasing=True)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    return tensor.clamp_(0, 1).unsqueeze(0)
