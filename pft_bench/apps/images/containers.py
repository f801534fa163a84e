"""The parts that files of PNG, JPEG and WebP are made of: what stands beside the pixels, read and put in.

libvips decodes and encodes the pixels. It would write a density that nobody gave, and change EXIF blocks on the way; so
it writes bare files, and what belongs beside the pixels is put in here as it is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IDAT", b"fdAT")
_PNG_LONGEST = 1 << 24
"""Bytes of a chunk of metadata, unpacked, beyond which it is passed over."""
JPEG_LONGEST = 65533
"""Bytes that one segment of a JPEG file can hold."""
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_IPTC = b"Photoshop 3.0\0"
_IIM = b"8BIM\x04\x04\0\0"
"""The resource of Photoshop, with an empty name, in which JPEG files hold IPTC."""


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of each chunk but the pixels; EOFError where the file ends before its last chunk does."""
    file.seek(len(PNG_START))
    name = b""
    while name != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise EOFError
        length, name = struct.unpack(">I4s", head)
        at = file.tell()
        if name not in _PNG_PIXELS and length <= _PNG_LONGEST:
            yield name, file.read(length)
        file.seek(at + length + 4)


def text_of_png(name: bytes, content: bytes) -> tuple[str, str] | None:
    """The key and the text of a chunk that holds one; None for others, and for one that is damaged."""
    key, _, rest = content.partition(b"\0")
    packed = name == b"zTXt"
    if name == b"iTXt" and len(rest) >= 2:
        packed = rest[0] == 1
        rest = b"\0" + rest[2:].split(b"\0", 2)[-1]
    elif name not in (b"tEXt", b"zTXt"):
        return None
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest[1:], _PNG_LONGEST)
        except zlib.error:
            return None
    elif name == b"iTXt":
        rest = rest[1:]
    return key.decode("latin-1"), rest.decode("utf-8" if name == b"iTXt" else "latin-1", "replace")


def profile_of_png(content: bytes) -> bytes | None:
    """The colour profile in a chunk of the kind iCCP, as it is; None where it cannot be unpacked."""
    packed = content.partition(b"\0")[2][1:]
    try:
        return zlib.decompressobj().decompress(packed, _PNG_LONGEST) or None
    except zlib.error:
        return None


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of each segment up to the pixels."""
    file.seek(2)
    while True:
        head = file.read(2)
        while head[1:] == b"\xff":  # filling
            head = head[1:] + file.read(1)
        if len(head) < 2 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            return
        if head[1] == 0x01 or 0xD0 <= head[1] <= 0xD8:  # these have no content
            continue
        size = file.read(2)
        if len(size) < 2:
            return
        yield head[1], file.read(max(int.from_bytes(size, "big") - 2, 0))


def iim_of(resources: bytes) -> bytes | None:
    """The records of IPTC among the resources of Photoshop, as a segment of JPEG holds them."""
    resources = resources.removeprefix(_JPEG_IPTC)
    at = resources.find(_IIM)
    if at < 0:
        return None
    at += len(_IIM)
    length = int.from_bytes(resources[at : at + 4], "big")
    return resources[at + 4 : at + 4 + length] or None


def with_png_chunks(content: bytes, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The file with these chunks before its pixels, and without the density that the encoder made up."""
    parts, at = [content[: len(PNG_START)]], len(PNG_START)
    pixels_seen = False
    while at < len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if name == b"IDAT" and not pixels_seen:
            pixels_seen = True
            parts += [_chunk(*chunk) for chunk in chunks]
        if name != b"pHYs":
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_density(density: tuple[float, float]) -> tuple[bytes, bytes]:
    """The chunk of a density in pixels per metre."""
    return b"pHYs", struct.pack(">IIB", *(min(round(side), 2**31 - 1) for side in density), 1)


def png_text(key: str, text: str) -> tuple[bytes, bytes]:
    """The chunk of a text in any language."""
    return b"iTXt", key.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + text.encode("utf-8", "replace")


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """A segment; it must not be longer than `JPEG_LONGEST`."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_density(density: tuple[float, float] | None) -> bytes:
    """The segment with which a JPEG file begins: a density in pixels per metre, written per inch, or none."""
    unit, sides = (0, [1, 1]) if density is None else (1, [round(side * 0.0254) for side in density])
    sides = [min(max(side, 1), 65535) for side in sides]
    return jpeg_segment(0xE0, struct.pack(">5sHBHHBB", b"JFIF\0", 0x0102, unit, *sides, 0, 0))


def jpeg_exif(block: bytes) -> bytes:
    """What the segment of an EXIF block holds."""
    return _JPEG_EXIF + block


def jpeg_xmp(packet: bytes) -> bytes:
    """What the segment of an XMP packet holds."""
    return _JPEG_XMP + packet


def jpeg_iptc(records: bytes) -> bytes:
    """What the segment of IPTC records holds."""
    return _JPEG_IPTC + _IIM + struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)


def with_jpeg_segments(content: bytes, segments: Sequence[bytes]) -> bytes:
    """The file with these segments at its beginning."""
    return content[:2] + b"".join(segments) + content[2:]


_VP8X_ALPHA, _VP8X_EXIF, _VP8X_XMP = 0x10, 0x08, 0x04


def with_webp_chunks(
    content: bytes, size_hw: tuple[int, int], chunks: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """The file with these chunks, EXIF and XMP, behind its pixels."""
    if not chunks:
        return content
    found, at = [], 12
    while at + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, at)
        found.append((name, content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    if found[0][0] != b"VP8X":
        # A picture of lossless coding tells of its alpha itself: bit 28 behind the byte that marks it.
        lossless = found[0][0] == b"VP8L"
        alpha = lossless and bool(int.from_bytes(found[0][1][1:5], "little") >> 28 & 1)
        sides = b"".join((side - 1).to_bytes(3, "little") for side in reversed(size_hw))
        found.insert(0, (b"VP8X", bytes([_VP8X_ALPHA if alpha else 0, 0, 0, 0]) + sides))
    flags = {b"EXIF": _VP8X_EXIF, b"XMP ": _VP8X_XMP}
    head = found[0][1]
    marked = head[0]
    for name, _ in chunks:
        marked |= flags[name]
    found[0] = (b"VP8X", bytes([marked]) + head[1:])
    body = b"WEBP" + b"".join(_riff(*chunk) for chunk in (*found, *chunks))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
