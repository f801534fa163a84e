"""What a file is, by its content: only the formats that are offered reach a decoder, whatever a name says."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from .containers import PNG_START
from .picture import PictureError

READ = ("PNG", "JPEG", "WebP", "TIFF", "BMP")
"""The formats that are read."""
MOST_PIXELS = 1 << 27
"""134 million: beyond it no command could do anything with a picture (4x of it alone are 26 GB of float32)."""
_OTHERS = (
    (rb"GIF8[79]a", "GIF"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg", "SVG"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1|heim|heis)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL )", "JPEG XL"),
    (rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)", "JPEG 2000"),
    (rb"%PDF", "PDF"),
    (rb"P[1-7fF]\s", "PNM"),
    (rb"8BPS", "Photoshop"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?R", "Radiance"),
    (rb"\0\0[\1\2]\0", "icon"),
    (rb"\s*<(!doctype html|html)", "HTML"),
)


def format_of(file: BinaryIO, path: Path) -> str:
    """One of `READ`; the file may be read from its beginning again. Raises PictureError for anything else."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if not head:
        raise PictureError(f"{path} must be a picture, got an empty file")
    if head.startswith(PNG_START):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    # Two letters begin many a text: the size of what follows them must be one that there is.
    if head[:2] == b"BM" and head[14:18] in [
        struct.pack("<I", n) for n in (12, 16, 40, 52, 56, 64, 108, 124)
    ]:
        return "BMP"
    for pattern, name in _OTHERS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise PictureError(f"{path} must be a picture in {', '.join(READ)}, got {name} by its content")
    raise PictureError(f"{path} must be a picture: its content is not in a known format ({', '.join(READ)})")


def check_size(path: Path, width: int, height: int) -> None:
    """Raise PictureError for a side of zero, and for more pixels than anything can be done with."""
    if width < 1 or height < 1:
        raise PictureError(f"{path} must have at least one pixel, got {width}x{height} (width x height)")
    if width * height > MOST_PIXELS:
        raise PictureError(
            f"{path} must have at most {MOST_PIXELS:,} pixels, got {width}x{height} (width x height)"
        )


def damaged(path: Path, kind: str) -> PictureError:
    """The error for a file that begins like a picture and is none that can be decoded."""
    return PictureError(
        f"{path} must be a picture that can be read, got a {kind} that is damaged, cut short or of an unknown kind"
    )
