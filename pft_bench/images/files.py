"""Pictures from and to PNG, JPEG, WebP and TIFF, 8 and 16 bits a channel, grey or colour, with or without alpha.

libvips does the work, because Pillow reads and writes 16-bit colour as 8-bit colour. Files are read and written by
Python itself, so that a missing file, a full disk or a read-only folder is an ordinary OSError, and a picture that
could not be finished leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drafts import draft

if TYPE_CHECKING:
    import pyvips

Array = np.ndarray[Any, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
OTHER_SUFFIXES = (
    *(".gif", ".bmp", ".dib", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpe", ".jfif", ".svg"),
    *(".ico", ".psd", ".xcf", ".exr", ".hdr", ".tga", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".pcx"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef"),
)
"""What pictures also come in, and what is not read here: such files in a folder are named, not passed over."""
_LONGEST = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
_DEEP = (".png", ".tif", ".tiff")
_ICC = "icc-profile-data"


def name_files(paths: Sequence[Path], most: int = 5) -> str:
    """`3 (a.gif, b.gif, c.gif)`: how many, and the names of the first ones."""
    named = [path.name for path in paths[:most]] + (["..."] if len(paths) > most else [])
    return f"{len(paths)} ({', '.join(named)})"


class PictureError(ValueError):
    """A file that is no picture, or a picture that cannot be held as asked."""


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


def read_picture(path: Path) -> Picture:
    """Read a picture, turned as its EXIF orientation says; CMYK and Lab become sRGB, of several frames the first stays.

    Raises:
        OSError: the file cannot be read.
        PictureError: it is no picture, is damaged or cut short, or has pixels other than 8 or 16 bits.
    """
    import pyvips

    content = path.read_bytes()
    if not content:
        raise PictureError(f"{path} must be a picture, got an empty file")
    try:
        # "error": a file that ends too early or is damaged is refused, not filled up with grey.
        image = pyvips.Image.new_from_buffer(content, "", fail_on="error", access="sequential")
        image, notes = _upright_rgb(image, path)
        pixels = image.numpy()  # decodes: only now is all of the file read
    except pyvips.Error as error:
        raise PictureError(f"{path} must be a picture that can be read: {_reason(error)}") from error
    pixels = pixels.reshape(image.height, image.width, image.bands)
    alpha = np.ascontiguousarray(pixels[..., -1]) if image.bands in (2, 4) else None
    icc = bytes(image.get(_ICC)) if image.get_typeof(_ICC) else None
    colour = pixels if alpha is None else pixels[..., :-1]
    return Picture(np.ascontiguousarray(colour), alpha, icc, tuple(notes))


def _upright_rgb(image: pyvips.Image, path: Path) -> tuple[pyvips.Image, list[str]]:
    notes = []
    frames = image.get("n-pages") if image.get_typeof("n-pages") else 1
    if frames > 1 and not image.get_typeof("n-subifds"):
        notes.append(f"only the first of {frames} frames")
    if image.interpretation == "cmyk":
        # With the embedded profile, else with a common one; what comes out is sRGB and needs none.
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=_bits(image))
        notes.append("CMYK converted to sRGB")
        image = _without_icc(image)
    elif image.interpretation in ("lab", "labs"):
        notes.append(f"{image.interpretation} converted to sRGB")
        image = _without_icc(image.colourspace("srgb"))
    if image.format not in ("uchar", "ushort"):
        raise PictureError(f"{path} must have 8 or 16 bits a channel, got {image.format} pixels")
    if not 1 <= image.bands <= 4:
        raise PictureError(f"{path} must be grey or RGB, with or without alpha, got {image.bands} channels")
    turned = image.get_typeof("orientation") and image.get("orientation") != 1
    return (image.copy_memory().autorot() if turned else image), notes


def _bits(image: pyvips.Image) -> int:
    return 16 if image.format == "ushort" else 8


def _without_icc(image: pyvips.Image) -> pyvips.Image:
    image = image.copy()
    if image.get_typeof(_ICC):
        image.remove(_ICC)
    return image


def _reason(error: Exception) -> str:
    """The first line that libvips gives, without its own function names in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("unable to")] or lines
    return told[0] if told else "no reason given"


def check_writable(
    path: Path, size_hw: tuple[int, int], *, alpha: bool, depth: type[np.generic]
) -> str | None:
    """Raise PictureError where a file of this suffix cannot hold such a picture; a note where it loses precision.

    Asked before anything is computed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PictureError(f"the output's name must end in {', '.join(SUFFIXES)}, got {path.name!r}")
    if alpha and suffix in (".jpg", ".jpeg"):
        raise PictureError(f"{path.name} cannot hold transparency: use .png, .webp or .tif")
    longest = _LONGEST.get(suffix)
    if longest is not None and max(size_hw) > longest:
        raise PictureError(
            f"{path.name} can have sides of at most {longest} pixels, the result has {size_hw[0]}x{size_hw[1]}: "
            f"use .png or .tif"
        )
    return f"16 bits written as 8 to {suffix}" if depth is np.uint16 and suffix not in _DEEP else None


def write_picture(path: Path, picture: Picture, *, quality: int = 95) -> None:
    """Write the picture in the format of the suffix, with its profile; `quality` is that of JPEG and WebP.

    The file appears whole or not at all. Raises PictureError (see `check_writable`) and OSError.
    """
    depth = picture.pixels.dtype.type
    check_writable(path, picture.size_hw, alpha=picture.alpha is not None, depth=depth)
    write_bytes(path, _encoded(path.suffix.lower(), picture, quality))


def _encoded(suffix: str, picture: Picture, quality: int) -> bytes:
    import pyvips

    planes = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    pixels = np.concatenate(planes, axis=2)
    if pixels.dtype == np.uint16 and suffix not in _DEEP:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    wide = pixels.dtype == np.uint16
    kind = ("rgb16" if wide else "srgb") if pixels.shape[2] >= 3 else ("grey16" if wide else "b-w")
    image = pyvips.Image.new_from_array(pixels).copy(interpretation=kind)
    if picture.icc is not None:
        image.set_type(pyvips.GValue.blob_type, _ICC, picture.icc)
    options: dict[str, Any] = {
        ".png": {},
        ".tif": {"compression": "deflate", "predictor": "horizontal"},
    }.get(".tif" if suffix == ".tiff" else suffix, {"Q": quality})
    try:
        return bytes(image.write_to_buffer(suffix, **options))
    except pyvips.Error as error:
        raise PictureError(f"the picture cannot be written as {suffix}: {_reason(error)}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a draft beside it, which is removed again when anything goes wrong."""
    with draft(path) as made:
        made.write_bytes(content)
