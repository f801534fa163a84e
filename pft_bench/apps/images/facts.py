"""What a file tells beside what libvips tells of it: frames, kinds of channels, metadata, and whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .containers import iim_of, jpeg_segments, png_chunks, profile_of_png, text_of_png
from .content import check_size, damaged
from .exif import exif_density
from .picture import Metadata
from .tiff_tags import BROKEN, Tags

_GAMMA_SRGB = (45455).to_bytes(4, "big")
_XMP = "XML:com.adobe.xmp"
_JPEG_EXIF, _JPEG_IPTC, _JPEG_FRAMES = b"Exif\0\0", b"Photoshop 3.0\0", b"MPF\0"


@dataclass(frozen=True)
class Facts:
    """What was found; `alpha` and `whole` are None where the file does not tell.

    `vips_density` says that the density libvips tells may be taken. `icc` is a colour profile as it stands in the
    file, where libvips drops a damaged one without a word.
    """

    metadata: Metadata
    notes: tuple[str, ...] = ()
    alpha: bool | None = None
    whole: bool | None = None
    vips_density: bool = True
    icc: bytes | None = None


def facts_of(file: BinaryIO, path: Path, kind: str) -> Facts:
    """Of a file that `format_of` knows. Raises PictureError where its frame is broken."""
    read: dict[str, Callable[[BinaryIO, Path], Facts]] = {
        "PNG": _png,
        "JPEG": _jpeg,
        "WebP": _webp,
        "TIFF": _tiff,
    }
    return read[kind](file, path)


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _png(file: BinaryIO, path: Path) -> Facts:
    frames, exif, density, seen = 1, None, None, {}
    text: list[tuple[str, str]] = []
    try:
        for name, content in png_chunks(file):
            seen[name] = content
            if name == b"IHDR" and len(content) >= 8:
                check_size(path, int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big"))
            elif name == b"acTL":
                frames = int.from_bytes(content[:4], "big")
            elif name == b"pHYs" and len(content) == 9 and content[8] == 1:
                sides = int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big")
                density = (float(sides[0]), float(sides[1])) if min(sides) > 0 else None
            elif name == b"eXIf":
                exif = content
            elif (pair := text_of_png(name, content)) and pair[0] != _XMP:
                text.append(pair)
    except EOFError as error:
        raise damaged(path, "PNG") from error
    notes = [f"only the first of {frames} frames"] if frames > 1 else []
    icc = profile_of_png(seen[b"iCCP"]) if b"iCCP" in seen else None
    if b"iCCP" in seen and icc is None:
        notes.append("its colour profile, which is damaged, left out")
    odd = b"cICP" in seen or seen.get(b"gAMA", _GAMMA_SRGB) != _GAMMA_SRGB
    if odd and b"iCCP" not in seen and b"sRGB" not in seen:
        notes.append("its description of the colours (cICP or gAMA) left out")
    metadata = Metadata(exif=exif, density=density or exif_density(exif), text=tuple(text))
    return Facts(metadata, tuple(notes), whole=True, vips_density=False, icc=icc)


def _jpeg(file: BinaryIO, path: Path) -> Facts:
    exif = iptc = None
    text: tuple[tuple[str, str], ...] = ()
    notes = []
    for marker, content in jpeg_segments(file):
        if marker == 0xE1 and content.startswith(_JPEG_EXIF) and exif is None:
            exif = content.removeprefix(_JPEG_EXIF)
        elif marker == 0xED and content.startswith(_JPEG_IPTC) and iptc is None:
            iptc = iim_of(content)
        elif marker == 0xE2 and content.startswith(_JPEG_FRAMES):
            notes.append("only the main one of the pictures in the file")  # others: previews, a map of gains
        elif marker == 0xFE:
            text += (("Comment", content.decode("utf-8", "replace")),)
    file.seek(max(_length(file) - 65536, file.tell()))
    # Whole: it ends with the marker that must be the last, or with little behind it. Otherwise decoding tells.
    whole = b"\xff\xd9" in file.read()
    return Facts(Metadata(exif=exif, iptc=iptc, text=text), tuple(notes), whole=whole or None)


def _webp(file: BinaryIO, path: Path) -> Facts:
    length = _length(file)
    file.seek(4)
    whole = int.from_bytes(file.read(4), "little") + 8 <= length
    file.seek(12)
    exif = None
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        at = file.tell()
        if head[:4] == b"EXIF" and at + size <= length:
            exif = file.read(size).removeprefix(_JPEG_EXIF)
        file.seek(at + size + size % 2)
    metadata = Metadata(exif=exif, density=exif_density(exif))
    return Facts(metadata, whole=whole or None, vips_density=False)


def _tiff(file: BinaryIO, path: Path) -> Facts:
    notes: tuple[str, ...] = ()
    try:
        tags = Tags(file)
    except BROKEN:  # the pixels may be sound: libvips will tell
        return Facts(Metadata(), ("its metadata, which is damaged, left out",))
    try:
        exif = tags.exif()
    except BROKEN:
        exif, notes = None, ("its EXIF, which is damaged, left out",)
    metadata = Metadata(exif=exif, iptc=tags.iptc(), text=tags.text())
    return Facts(metadata, notes, alpha=tags.alpha, whole=tags.whole(_length(file)) or None)
