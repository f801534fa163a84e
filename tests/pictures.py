"""Files of pictures as people have them: odd, damaged, huge, or none at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"/>'


def encoded(pixels: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a picture as Pillow writes them."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG of 8-bit RGB that says this size and has the pixels of another."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels


def bmp_header(width: int, height: int) -> bytes:
    """A BMP that says this size."""
    content = bytearray(encoded(np.zeros((4, 4, 3), np.uint8), "BMP"))
    struct.pack_into("<ii", content, 18, width, height)
    return bytes(content)


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG that says this size."""
    content = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    at = content.index(b"\xff\xc0")
    struct.pack_into(">HH", content, at + 5, height, width)
    return bytes(content)


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF that says this size."""
    content = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "TIFF"))
    first = struct.unpack_from("<I", content, 4)[0]
    for number in range(struct.unpack_from("<H", content, first)[0]):
        entry = first + 2 + 12 * number
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HII", content, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(content)


def one_bit(width: int, height: int) -> bytes:
    """A real PNG of one bit a pixel: many pixels in a small file."""
    rows = zlib.compressobj(1)
    row = b"\0" + b"\xaa" * ((width + 7) // 8)
    packed = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def no_pictures() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, part of what must be said of it)."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 44, 3)).astype(np.uint8)
    small = Image.fromarray(noise)
    return {
        "empty.png": (b"", "must be a picture, got an empty file"),
        "text.png": (b"no picture at all", "not in a known format (PNG, JPEG, WebP, TIFF, BMP)"),
        "svg.png": (SVG.encode(), "got SVG by its content"),
        "gif.png": (encoded(small, "GIF", save_all=True, append_images=[small]), "got GIF by its content"),
        "zero.png": (png_header(0, 5), "must have at least one pixel, got 0x5"),
        "cut.png": (encoded(small, "PNG")[:-400], "got a PNG that is damaged, cut short"),
        "head.png": (encoded(small, "PNG")[:40], "got a PNG that is damaged, cut short"),
        "cut.jpg": (encoded(small, "JPEG")[:-400], "got a JPEG that is damaged, cut short"),
        "cut.webp": (encoded(small, "WEBP")[:-400], "got a WebP that is damaged, cut short"),
        "cut.tif": (
            encoded(small, "TIFF", compression="raw")[:-400],
            "got a TIFF that is damaged, cut short",
        ),
        "cut.bmp": (encoded(small, "BMP")[:-400], "got a BMP that is damaged, cut short"),
        "huge.png": (png_header(20000, 20000), "at most 134,217,728 pixels, got 20000x20000"),
        "huge.bmp": (bmp_header(20000, -20000), "at most 134,217,728 pixels, got 20000x20000"),
        "huge.jpg": (jpeg_header(60000, 50000), "at most 134,217,728 pixels, got 60000x50000"),
        "huge.tif": (tiff_header(20000, 20000), "at most 134,217,728 pixels, got 20000x20000"),
        "real.png": (one_bit(14000, 13000), "at most 134,217,728 pixels, got 14000x13000"),
    }


def save(folder: Path, name: str, content: bytes) -> Path:
    """Write a file and give its path."""
    (folder / name).write_bytes(content)
    return folder / name
