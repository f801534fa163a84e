"""The low-resolution input of a model run: a bundled photograph or the user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...apps.images import read_header, read_picture, rgb, taken

BUNDLED = "astronaut"
"""A photograph that scikit-image ships: E. Collins, NASA, public domain."""


def low_resolution(size_hw: tuple[int, int], image: Path | None = None) -> Tensor:
    """A photograph resized to `size_hw`, [1, 3, h, w] float32 in 0..1, anti-aliased.

    It serves as the model's input as it is; no high-resolution counterpart is implied.

    Raises:
        OSError, PictureError: the file is no picture that can be read.
    """
    from skimage import data, transform, util

    if image is None:
        pixels = getattr(data, BUNDLED)()
    else:
        pixels = rgb(read_picture(image))
    resized = transform.resize(util.img_as_float32(pixels), size_hw, order=3, anti_aliasing=True)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    return tensor.clamp_(0, 1).unsqueeze(0)


def image_notes(image: Path | None) -> list[str]:
    """What was left out or converted while reading the user's file: at most one line."""
    notes = () if image is None else taken(read_header(image))
    return [f"{image}: {'; '.join(notes)}"] if notes else []
