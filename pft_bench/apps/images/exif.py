"""The few facts of an EXIF block and an XMP packet that belong to the pixels, read and set in place.

Everything else stays byte for byte as it is, makers' notes with their offsets too. Layout: TIFF 6.0 and CIPA DC-008
(EXIF 2.3).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_WIDTH, _HEIGHT, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT = 0x100, 0x101, 0x112, 0x11A, 0x11B, 0x128
_EXIF_FOLDER, _PIXEL_X, _PIXEL_Y = 0x8769, 0xA002, 0xA003
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_PER_METRE = {2: 1 / 0.0254, 3: 100.0}  # units: inch, centimetre
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>\s*))[2-8]""")


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    at: int
    """Where the value, or its offset, lies."""


class ExifBlock:
    """A block that can be changed in place. Raises ValueError where it is damaged."""

    def __init__(self, block: bytes) -> None:
        self.content = bytearray(block.removeprefix(b"Exif\0\0"))
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(self.content[:2]), "")
        if not self.order or self._number("H", 2) != 42:
            raise ValueError("not a block of EXIF")
        self._first = self._number("I", 4)
        self.entries = {entry.tag: entry for entry in self._folder(self._first)}
        inner = self._value(_EXIF_FOLDER)
        self._inner = {} if inner is None else {entry.tag: entry for entry in self._folder(inner)}

    def _number(self, kind: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + kind, self.content, at)[0])
        except struct.error as error:
            raise ValueError("a block of EXIF that is cut short") from error

    def _folder(self, at: int) -> Iterator[_Entry]:
        for number in range(self._number("H", at)):
            entry = at + 2 + 12 * number
            self._number("I", entry + 8)  # the whole entry must be there
            yield _Entry(self._number("H", entry), self._number("H", entry + 2), entry + 8)

    def _value(self, tag: int) -> int | None:
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in (_SHORT, _LONG):
            return None
        return self._number("H" if entry.kind == _SHORT else "I", entry.at)

    def density(self) -> tuple[float, float] | None:
        """Pixels per metre in x and y."""
        per_metre = _PER_METRE.get(self._value(_UNIT) or 0)
        sides = [self._rational(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
        if per_metre is None or not all(sides):
            return None
        return sides[0] * per_metre, sides[1] * per_metre

    def _rational(self, tag: int) -> float:
        entry = self.entries.get(tag)
        if entry is None or entry.kind != _RATIONAL:
            return 0.0
        at = self._number("I", entry.at)
        below = self._number("I", at + 4)
        return self._number("I", at) / below if below else 0.0

    def upright(self, size_hw: tuple[int, int]) -> bytes:
        """The block for an upright picture of this size; its small preview, which shows another, is cut off."""
        height, width = size_hw
        for entries, tag, value in (
            (self.entries, _ORIENTATION, 1),
            (self.entries, _WIDTH, width),
            (self.entries, _HEIGHT, height),
            (self._inner, _PIXEL_X, width),
            (self._inner, _PIXEL_Y, height),
        ):
            entry = entries.get(tag)
            if entry is not None and entry.kind == _LONG:
                struct.pack_into(self.order + "I", self.content, entry.at, value)
            elif entry is not None and entry.kind == _SHORT:
                struct.pack_into(self.order + "H", self.content, entry.at, min(value, 65535))
        after = self._first + 2 + 12 * self._number("H", self._first)
        if len(self.content) >= after + 4:
            struct.pack_into("I", self.content, after, 0)
        return bytes(self.content)


def exif_density(block: bytes | None) -> tuple[float, float] | None:
    """Pixels per metre that an EXIF block tells, None where it does not or is damaged."""
    try:
        return None if block is None else ExifBlock(block).density()
    except ValueError:
        return None


def upright_xmp(packet: bytes) -> bytes:
    """The packet with its orientation, if it tells one, set to upright."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)
