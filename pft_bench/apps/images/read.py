"""The one reader of pictures: PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bits, grey or colour, with or without alpha.

libvips decodes, because Pillow reads 16-bit colour as 8-bit colour.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .bitmap import Bitmap
from .content import check_size, damaged, format_of
from .facts import Facts, facts_of
from .picture import Header, Metadata, Picture, PictureError

if TYPE_CHECKING:
    import pyvips

Array = np.ndarray[Any, Any]

logging.getLogger("pyvips").setLevel(logging.ERROR)  # what is wrong with a file, our own errors say
ICC = "icc-profile-data"
_CHANNELS = {
    **dict.fromkeys(("b-w", "grey16"), (1, 2)),
    **dict.fromkeys(("srgb", "rgb", "rgb16", "lab", "labs"), (3, 4)),
    "cmyk": (4, 5),
}
"""How many channels there are without and with alpha."""
_EXIF_AS_TEXT = ("Raw profile type exif", "Raw profile type APP1")
_SWAPPED = 5
"""From this EXIF orientation on, width and height are exchanged."""


def read_header(path: Path) -> Header:
    """What `read_picture` will make of a file. Files that were cut short are found here already.

    Raises as `read_picture` does.
    """
    with _opened(path) as opened:
        opened.check_whole()
        return Header(opened.size_hw, opened.bits, tuple(opened.notes), opened.alpha)


def read_picture(path: Path) -> Picture:
    """Read a picture, turned as its EXIF orientation says; CMYK and Lab become sRGB, of several frames the first stays.

    What the file is, its content decides. A colour profile is kept, and the pixels stay as they are stored.

    Raises:
        OSError: the file cannot be read.
        PictureError: it is no picture, is damaged or cut short, has more than `MOST_PIXELS` pixels, or channels other
            than grey or RGB of 8 or 16 bits.
    """
    with _opened(path) as opened:
        pixels = opened.pixels()
    channels = pixels.shape[2]
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in (2, 4) else None
    colour = np.ascontiguousarray(pixels if alpha is None else pixels[..., :-1])
    return Picture(colour, alpha, opened.icc, tuple(opened.notes), opened.metadata)


@contextmanager
def _opened(path: Path) -> Iterator[_Vips | _Bmp]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise PictureError(f"{path} must be a file with a picture, got a folder, a pipe or a device")
    with path.open("rb") as file:
        kind = format_of(file, path)
        yield _Bmp(file, path) if kind == "BMP" else _Vips(file, path, kind)


class _Bmp:
    """A BMP, whose one decoder Pillow is."""

    bits = 8
    icc = None

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._bitmap = Bitmap(file, path)
        self.size_hw = self._bitmap.size_hw
        self.alpha = self._bitmap.alpha
        self.notes = self._bitmap.notes
        self.metadata = self._bitmap.metadata

    def check_whole(self) -> None:
        self.pixels()

    def pixels(self) -> Array:
        return self._bitmap.pixels()


class _Vips:
    """A file of which libvips has read the header; nothing is decoded yet."""

    def __init__(self, file: BinaryIO, path: Path, kind: str) -> None:
        import pyvips

        self._path, self._kind = path, kind
        self._facts = facts_of(file, path, kind)
        file.seek(0)
        try:
            # The loader is named, so that no other format is tried; "error": a file that ends too early or is damaged
            # is refused, not filled up with grey.
            load = getattr(pyvips.Image, f"{kind.lower()}load_source")
            image = load(
                pyvips.Source.new_from_descriptor(file.fileno()), fail_on="error", access="sequential"
            )
        except pyvips.Error as error:
            raise damaged(path, kind) from error
        check_size(path, image.width, image.height)
        orientation = image.get("orientation") if image.get_typeof("orientation") else 1
        self._turned = orientation != 1
        swapped = orientation >= _SWAPPED
        self.size_hw = (image.width, image.height) if swapped else (image.height, image.width)
        self.notes = list(self._facts.notes)
        frames = image.get("n-pages") if image.get_typeof("n-pages") else 1
        if frames > 1 and not image.get_typeof("n-subifds"):
            self.notes.append(f"only the first of {frames} frames")
        self._image = self._as_rgb(image)
        self.alpha = self._image.bands in (2, 4)
        self.bits = 16 if self._image.format == "ushort" else 8
        self.icc = self._facts.icc or _blob(self._image, ICC)
        self.metadata = _metadata(image, self._facts, swapped)

    def _as_rgb(self, image: pyvips.Image) -> pyvips.Image:
        kind, format, path = image.interpretation, image.format, self._path
        if format not in ("uchar", "ushort") and kind != "labs":
            raise PictureError(f"{path} must have 8 or 16 bits a channel, got {format} pixels")
        if image.bands not in _CHANNELS.get(kind, ()):
            raise PictureError(
                f"{path} must be grey, RGB, CMYK or Lab, with or without alpha, got {image.bands} channels ({kind})"
            )
        if image.bands == _CHANNELS[kind][1] and self._facts.alpha is False:
            if kind == "cmyk":
                raise PictureError(f"{path} must be CMYK, with or without alpha, got 5 inks")
            self.notes.append("the last channel taken as alpha, though the file does not say what it is")
        if kind in ("b-w", "grey16", "srgb", "rgb", "rgb16"):
            return image
        profile = ", its colour profile used up" if image.get_typeof(ICC) else ""
        if kind == "cmyk":
            # With the embedded profile, else with a common one; what comes out is sRGB and needs none.
            depth = 16 if format == "ushort" else 8
            image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
        else:
            image = image.colourspace("rgb16" if kind == "labs" else "srgb")
        self.notes.append(f"{'CMYK' if kind == 'cmyk' else 'Lab'} converted to sRGB{profile}")
        image = image.copy()
        if image.get_typeof(ICC):
            image.remove(ICC)
        return image

    def check_whole(self) -> None:
        if self._facts.whole is not True:
            self._decoded(lambda: self._image.avg())

    def pixels(self) -> Array:
        image = self._decoded(
            lambda: (self._image.copy_memory().autorot() if self._turned else self._image).numpy()
        )
        return np.asarray(image).reshape(*self.size_hw, -1)

    def _decoded(self, decode: Any) -> Any:
        import pyvips

        try:
            return decode()
        except pyvips.Error as error:
            if "out of memory" in str(error):
                raise MemoryError(f"{self._path} is too large for the memory that is free") from error
            raise damaged(self._path, self._kind) from error


def _blob(image: pyvips.Image, name: str) -> bytes | None:
    return (bytes(image.get(name)) or None) if image.get_typeof(name) else None


def _metadata(image: pyvips.Image, facts: Facts, swapped: bool) -> Metadata:
    density = facts.metadata.density
    # libvips gives a density of its own where a file has none; only then it names no unit.
    if density is None and facts.vips_density and image.get_typeof("resolution-unit"):
        density = (image.xres * 1000, image.yres * 1000)
    if density is not None and swapped:
        density = density[::-1]
    exif, text = facts.metadata.exif, facts.metadata.text
    if exif is None and (exif := _blob(image, "exif-data")):
        # Some versions of libvips find it in the texts of a PNG, and turn the picture as it says.
        text = tuple(pair for pair in text if pair[0] not in _EXIF_AS_TEXT)
    return replace(facts.metadata, density=density, exif=exif, text=text, xmp=_blob(image, "xmp-data"))
