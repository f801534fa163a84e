"""BMP, in which Set5 and Set14 were first passed around: libvips' usual build does not read it, Pillow does."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .content import check_size, damaged
from .picture import Metadata

Array = np.ndarray[Any, Any]

_EMBEDDED = (0x4D424544, 0x4C494E4B)
"""The marks of a colour profile inside the file or beside it, which Pillow passes over."""


class Bitmap:
    """A BMP of which the header has been read. Raises PictureError where that is not possible."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        from PIL import Image

        self._path = path
        head = file.read(74)
        file.seek(0)
        try:
            check_size(path, *self._sides(head))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked before
                self._image = Image.open(file, formats=["BMP"])
        except (OSError, SyntaxError, struct.error, KeyError, Image.DecompressionBombError) as error:
            raise damaged(path, "BMP") from error
        profile = len(head) >= 74 and head[14] == 124 and struct.unpack_from("<I", head, 70)[0] in _EMBEDDED
        self.notes = ["the colour profile of the BMP left out"] if profile else []
        sides = self._image.info.get("dpi", (0, 0))
        density = (sides[0] / 0.0254, sides[1] / 0.0254) if min(sides) > 0 else None
        self.metadata = Metadata(density=density)
        self.alpha = "A" in self._image.mode
        self.size_hw = (self._image.height, self._image.width)

    @staticmethod
    def _sides(head: bytes) -> tuple[int, int]:
        old = head[14] < 40
        width, height = struct.unpack_from("<HH" if old else "<ii", head, 18)
        return width, abs(height)

    def pixels(self) -> Array:
        """[h, w, 1, 3 or 4] uint8."""
        try:
            self._image.load()
            mode = self._image.mode
            grey = mode in ("1", "L")
            image = self._image.convert("L" if grey else "RGBA" if "A" in mode else "RGB")
        except (OSError, SyntaxError, struct.error, ValueError, IndexError) as error:
            raise damaged(self._path, "BMP") from error
        pixels = np.array(image)
        return pixels[..., None] if grey else pixels
