"""A picture in memory: pixels as they are stored, and what else a file tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class PictureError(ValueError):
    """A file that is no picture, or a picture that cannot be held as asked."""


@dataclass(frozen=True)
class Metadata:
    """What a file tells beside its pixels.

    `exif` is a block in TIFF's layout, `xmp` a packet of XML, `iptc` records of IIM, `density` pixels per metre in x
    and y, None where the file does not tell. `text` holds pairs of a key and its text.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    density: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Height and width when upright, bits a channel, notes, and whether there is alpha, be it opaque throughout or not.
    """

    size_hw: tuple[int, int]
    bits: int
    notes: tuple[str, ...]
    alpha: bool


@dataclass(frozen=True)
class Picture:
    """Pixels as they are stored, upright.

    `pixels` is [h, w, 1] or [h, w, 3], `alpha` [h, w] or None, both uint8 or uint16. `icc` is the embedded colour
    profile, `notes` what was left out or converted while reading.
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes | None = None
    notes: tuple[str, ...] = ()
    metadata: Metadata = Metadata()

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise PictureError(f"pixels must be [h, w, 1 or 3] uint8 or uint16, got {shape} {dtype}")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise PictureError(
                f"alpha must be {shape[:2]} {dtype}, got {self.alpha.shape} {self.alpha.dtype}"
            )

    @property
    def peak(self) -> int:
        """The value of white: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def transparent(self) -> bool:
        """Whether any pixel is not fully opaque; alpha that is all opaque says nothing."""
        return self.alpha is not None and bool((self.alpha != self.peak).any())


def taken(picture: Picture | Header, *, eight: bool = False) -> tuple[str, ...]:
    """Its notes, and what of it `rgb`, or with `eight` `rgb8`, leaves out."""
    faint = picture.transparent if isinstance(picture, Picture) else picture.alpha
    deep = (picture.pixels.dtype == np.uint16) if isinstance(picture, Picture) else picture.bits > 8
    return (
        *picture.notes,
        *(["transparency left out"] if faint else []),
        *(["16 bits a channel read as 8"] if eight and deep else []),
    )


def eight_bits(values: Array) -> Array:
    """uint8 or uint16 as uint8: white stays white, the rest is rounded to the nearest."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def rgb(picture: Picture) -> Array:
    """The colours as [h, w, 3] in the picture's own depth, grey three times over, alpha left out."""
    return picture.pixels if picture.pixels.shape[2] == 3 else picture.pixels.repeat(3, axis=2)


def rgb8(picture: Picture) -> Array:
    """The colours as [h, w, 3] uint8, as the field's metrics and its training take them, alpha left out."""
    return eight_bits(rgb(picture))
