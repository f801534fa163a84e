"""Pictures to PNG, JPEG, WebP and TIFF, with what stands beside their pixels as far as the format can hold it.

libvips encodes. Files are written by Python itself, so that a full disk or a read-only folder is an ordinary OSError,
and a picture that could not be finished leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...common.drafts import draft
from .beside import fitting_metadata, with_metadata
from .picture import Picture, PictureError, eight_bits
from .profile import usable_profile
from .read import ICC

Array = np.ndarray[Any, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""What is written."""
_LONGEST = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
_DEEP = (".png", ".tif", ".tiff")
_MOST_BYTES = {".tif": 1 << 31, ".tiff": 1 << 31}
"""From so many bytes of pixels on, a TIFF may need offsets of more than four bytes."""


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


def fit_to_file(path: Path, picture: Picture, size_hw: tuple[int, int]) -> tuple[Picture, list[str]]:
    """What of `picture` a file of this name will hold, enlarged to `size_hw`, and notes about what it will not.

    Asked before anything is computed: what is left of the profile and of the metadata can be written. Alpha that is
    opaque throughout says nothing, and goes where the format has no place for it.

    Raises:
        PictureError: the format cannot hold such a picture at all.
    """
    suffix = path.suffix.lower()
    alpha = picture.alpha if picture.transparent or suffix not in (".jpg", ".jpeg") else None
    deep = check_writable(path, size_hw, alpha=alpha is not None, depth=picture.pixels.dtype.type)
    notes = [] if deep is None else [deep]
    icc = picture.icc
    if icc is not None:
        icc, said = usable_profile(icc, picture.pixels.shape[2])
        notes += [] if said is None else [said]
    metadata, lost = fitting_metadata(suffix, picture.metadata)
    fitted = replace(picture, alpha=alpha, icc=icc, metadata=metadata)
    if icc is not None and not _holds_profile(suffix, fitted):
        fitted = replace(fitted, icc=None)
        notes.append(f"the colour profile left out: {suffix} cannot hold it")
    return fitted, notes + lost


def _holds_profile(suffix: str, picture: Picture) -> bool:
    """Try it on one pixel: some encoders fail for a profile that they do not like, others drop it without a word."""
    import pyvips

    alpha = None if picture.alpha is None else picture.alpha[:1, :1]
    try:
        content = _encoded(suffix, Picture(picture.pixels[:1, :1], alpha, picture.icc), 95)
    except PictureError:
        return False
    image = pyvips.Image.new_from_buffer(content, "")
    return bool(image.get_typeof(ICC)) and bytes(image.get(ICC)) == picture.icc


def write_picture(path: Path, picture: Picture, *, quality: int = 95) -> None:
    """Write the picture in the format of the suffix, with its profile and metadata; `quality` is that of JPEG and WebP.

    What the format cannot hold is left out as `fit_to_file` says. The file appears whole or not at all. Raises
    PictureError (see `check_writable`) and OSError.
    """
    fitted, _ = fit_to_file(path, picture, picture.size_hw)
    suffix = path.suffix.lower()
    content = _encoded(suffix, fitted, quality)
    write_bytes(path, with_metadata(suffix, content, fitted.metadata, fitted.size_hw))


def _encoded(suffix: str, picture: Picture, quality: int) -> bytes:
    """The bare file, with its profile and no other metadata than what only libvips can put into a TIFF."""
    import pyvips

    planes = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    pixels = np.concatenate(planes, axis=2)
    if suffix not in _DEEP:
        pixels = eight_bits(pixels)
    wide = pixels.dtype == np.uint16
    kind = ("rgb16" if wide else "srgb") if pixels.shape[2] >= 3 else ("grey16" if wide else "b-w")
    image = pyvips.Image.new_from_array(pixels).copy(interpretation=kind)
    if picture.icc is not None:
        image.set_type(pyvips.GValue.blob_type, ICC, picture.icc)
    tiff = {"compression": "deflate", "predictor": "horizontal"}
    options: dict[str, Any] = {".png": {}, ".tif": tiff, ".tiff": tiff}.get(suffix, {"Q": quality})
    if pixels.nbytes >= _MOST_BYTES.get(suffix, pixels.nbytes + 1):
        options = {**options, "bigtiff": True}
    try:
        return bytes(image.write_to_buffer(suffix, keep="icc", **options))
    except pyvips.Error as error:
        raise PictureError(f"the picture cannot be written as {suffix}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line that libvips gives, without its own function names in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("unable to")] or lines
    return told[0] if told else "no reason given"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a draft beside it, which is removed again when anything goes wrong."""
    with draft(path) as made:
        made.write_bytes(content)
