"""What stands beside the pixels of a file, in each format that is written, and what a format has no place for."""

from __future__ import annotations

import io
from dataclasses import replace

from . import containers
from .exif import ExifBlock, exif_density, upright_xmp
from .picture import Metadata
from .tiff_tags import BROKEN, check_exif, with_tags

_PNG, _JPEG, _WEBP, _TIFF = (".png",), (".jpg", ".jpeg"), (".webp",), (".tif", ".tiff")


def fitting_metadata(suffix: str, metadata: Metadata) -> tuple[Metadata, list[str]]:
    """What of the metadata a file of this suffix can hold, and notes about the rest."""
    notes = []
    if metadata.exif is not None and not _sound(suffix, metadata.exif):
        metadata = replace(metadata, exif=None)
        notes.append("its EXIF, which is damaged, left out")
    lost: list[str] = []
    if suffix in _JPEG:
        metadata, lost = _within_segments(metadata)
    elif suffix not in _TIFF and metadata.iptc is not None:
        metadata, lost = replace(metadata, iptc=None), ["IPTC"]
    key = {**dict.fromkeys(_JPEG, "Comment"), **dict.fromkeys(_TIFF, "Description")}.get(suffix)
    text = tuple(pair for pair in metadata.text if suffix in _PNG or pair[0] == key)
    if suffix not in _PNG:
        text = text[:1]
    if text != metadata.text:
        lost.append(f"text ({', '.join(pair[0] for pair in metadata.text if pair not in text)})")
        metadata = replace(metadata, text=text)
    if suffix in _WEBP and metadata.density is not None and exif_density(metadata.exif) is None:
        metadata = replace(metadata, density=None)
        lost.append("density")
    return metadata, notes + (
        [f"left out, as {suffix} has no place for it: {', '.join(lost)}"] if lost else []
    )


def _sound(suffix: str, block: bytes) -> bool:
    try:
        ExifBlock(block).upright((1, 1))
        if suffix in _TIFF:
            check_exif(block)
    except BROKEN:
        return False
    return True


def _within_segments(metadata: Metadata) -> tuple[Metadata, list[str]]:
    """JPEG holds each in one segment."""
    exif, xmp, iptc = metadata.exif, metadata.xmp, metadata.iptc
    lost: list[str] = []
    if exif is not None and len(containers.jpeg_exif(exif)) > containers.JPEG_LONGEST:
        lost, exif = [*lost, f"EXIF of {len(exif)} bytes"], None
    if xmp is not None and len(containers.jpeg_xmp(xmp)) > containers.JPEG_LONGEST:
        lost, xmp = [*lost, f"XMP of {len(xmp)} bytes"], None
    if iptc is not None and len(containers.jpeg_iptc(iptc)) > containers.JPEG_LONGEST:
        lost, iptc = [*lost, f"IPTC of {len(iptc)} bytes"], None
    return replace(metadata, exif=exif, xmp=xmp, iptc=iptc), lost


def with_metadata(suffix: str, content: bytes, metadata: Metadata, size_hw: tuple[int, int]) -> bytes:
    """The bare file with metadata that `fitting_metadata` has let through, told for upright pixels of this size."""
    exif = None if metadata.exif is None else ExifBlock(metadata.exif).upright(size_hw)
    xmp = None if metadata.xmp is None else upright_xmp(metadata.xmp)
    metadata = replace(metadata, exif=exif, xmp=xmp)
    if suffix in _TIFF:
        return with_tags(io.BytesIO(content), metadata)
    if suffix in _JPEG:
        return containers.with_jpeg_segments(content, _segments(metadata))
    if suffix in _PNG:
        return containers.with_png_chunks(content, _chunks(metadata))
    named = ((b"EXIF", exif), (b"XMP ", xmp))
    return containers.with_webp_chunks(content, size_hw, [(n, block) for n, block in named if block])


def _segments(metadata: Metadata) -> list[bytes]:
    found = [containers.jpeg_density(metadata.density)]
    if metadata.exif is not None:
        found.append(containers.jpeg_segment(0xE1, containers.jpeg_exif(metadata.exif)))
    if metadata.xmp is not None:
        found.append(containers.jpeg_segment(0xE1, containers.jpeg_xmp(metadata.xmp)))
    if metadata.iptc is not None:
        found.append(containers.jpeg_segment(0xED, containers.jpeg_iptc(metadata.iptc)))
    for _, text in metadata.text:
        found.append(containers.jpeg_segment(0xFE, text.encode()[: containers.JPEG_LONGEST]))
    return found


def _chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    found = [] if metadata.density is None else [containers.png_density(metadata.density)]
    if metadata.exif is not None:
        found.append((b"eXIf", metadata.exif))
    texts = metadata.text
    if metadata.xmp is not None:
        texts = (("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace")), *texts)
    return found + [containers.png_text(*pair) for pair in texts]
