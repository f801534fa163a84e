"""The tags of a TIFF: read with Pillow's reader of tags, which decodes nothing, and written beside libvips' pixels."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from .containers import iim_of
from .picture import Metadata

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_EXTRA_SAMPLES, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 338, 273, 279, 324, 325
_X_RESOLUTION, _Y_RESOLUTION, _UNIT, _NO_UNIT, _INCH = 282, 283, 296, 1, 2
_DESCRIPTION, _XMP, _IPTC, _PHOTOSHOP = 270, 700, 33723, 34377
_CAMERA = (271, 272, 305, 306, 315, 33432)
"""Tags of TIFF that are the same in EXIF: make, model, software, date, artist, copyright."""
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_ALPHA = (1, 2)
"""ExtraSamples: alpha, with colours multiplied by it or not."""
_BYTES, _ASCII, _LONG, _UNDEFINED = 1, 2, 4, 7
BROKEN = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OSError,
    SyntaxError,
    Warning,
    struct.error,
    OverflowError,
)
"""What Pillow raises for tags that are damaged."""
_EXIF_START = b"Exif\0\0"


class Tags:
    """The tags of the first picture in a TIFF. Raises one of `BROKEN` where they are damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        with _warnings("error"):
            tags = _folder(file)
            self._found = {tag: tags[tag] for tag in tags}

    @property
    def alpha(self) -> bool:
        """Whether the channel behind the colours is said to be alpha."""
        extra = self._found.get(_EXTRA_SAMPLES, (0,))
        return (extra if isinstance(extra, tuple) else (extra,))[0] in _ALPHA

    def whole(self, length: int) -> bool:
        """Whether all pixels lie inside a file of this length."""
        offsets = self._found.get(_STRIPS, self._found.get(_TILES, ()))
        sizes = self._found.get(_STRIP_BYTES, self._found.get(_TILE_BYTES, ()))
        return bool(offsets) and all(at + size <= length for at, size in zip(offsets, sizes, strict=False))

    def iptc(self) -> bytes | None:
        """Records of IPTC, in their own tag or among Photoshop's resources."""
        return _bytes(self._found.get(_IPTC)) or iim_of(_bytes(self._found.get(_PHOTOSHOP)) or b"")

    def text(self) -> tuple[tuple[str, str], ...]:
        """The description, unless a program keeps the shape of the pixels there, which becomes another one."""
        description = str(self._found.get(_DESCRIPTION, ""))
        kept = description and not description.startswith(("{", "ImageJ", "<?xml"))
        return (("Description", description),) if kept else ()

    def exif(self) -> bytes | None:
        """The camera's tags and the folders EXIF and GPS as a block of EXIF."""
        from PIL import Image

        plain = [tag for tag in _CAMERA if tag in self._found]
        folders = [tag for tag in (_EXIF, _GPS) if tag in self._found]
        if not plain and not folders:
            return None
        if self._found.get(_UNIT, _INCH) != _NO_UNIT:
            plain += [tag for tag in (_X_RESOLUTION, _Y_RESOLUTION, _UNIT) if tag in self._found]
        block = Image.Exif()
        for tag in plain:
            block[tag] = self._found[tag]
        for folder in folders:
            with _warnings("error"):
                inner = _folder(self._file, self._found[folder], folder)
                block.get_ifd(folder).update({tag: inner[tag] for tag in inner})
        return block.tobytes().removeprefix(_EXIF_START)


def _folder(file: BinaryIO, at: int | None = None, group: int | None = None) -> ImageFileDirectory_v2:
    """The tags of a folder that begins at byte `at`, of the first one by default."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    head = file.read(16)
    tags = ImageFileDirectory_v2(head[: _head_length(head)], group=group)
    file.seek(tags.next if at is None else at)
    tags.load(file)
    return tags


@contextmanager
def _warnings(action: Literal["error", "ignore"]) -> Iterator[None]:
    """Pillow warns of tags that are cut short, and goes on without them."""
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        yield


def _head_length(head: bytes) -> int:
    return 16 if 43 in head[2:4] else 8  # 43: offsets of eight bytes


def _bytes(value: object) -> bytes | None:
    """Bytes of a tag, which some programs write as if they were integers of four bytes."""
    if isinstance(value, tuple) and value and all(isinstance(part, int) for part in value):
        return b"".join(part.to_bytes(4, "little") for part in value)
    return value if isinstance(value, bytes) else None


def with_tags(file: BinaryIO, metadata: Metadata) -> bytes:
    """The TIFF of one picture with this metadata and no other density than its own.

    The tags are written anew in front of the pixels. Raises one of `BROKEN` for an EXIF block that is damaged.
    """
    tags = _folder(file)
    found: dict[int, Any] = {tag: tags[tag] for tag in tags}
    _set_density(tags, metadata.density)
    for tag, kind, value in (
        (_XMP, _BYTES, metadata.xmp),
        (_IPTC, _UNDEFINED, metadata.iptc),
        (_DESCRIPTION, _ASCII, metadata.text[0][1].encode() if metadata.text else None),
    ):
        if value is not None:
            tags.tagtype[tag] = kind
            tags[tag] = value
    if metadata.exif is not None:
        with _warnings("ignore"):  # `check_exif` has found none
            _set_exif(tags, metadata.exif)
    file.seek(0)
    content = file.read()
    length = _head_length(content[:4])
    # Pillow adds to these where its own tags end, and that is where the pixels will begin.
    tags[_STRIPS] = tuple(at - length for at in found[_STRIPS])
    end = max(at + size for at, size in zip(found[_STRIPS], found[_STRIP_BYTES], strict=True))
    order = "<" if content[:2] == b"II" else ">"
    first = struct.pack(order + ("Q" if length == 16 else "I"), length)
    return content[: length - len(first)] + first + tags.tobytes(length) + content[length:end]


def _set_density(tags: ImageFileDirectory_v2, density: tuple[float, float] | None) -> None:
    from PIL.TiffImagePlugin import IFDRational

    tags[_UNIT] = _NO_UNIT if density is None else _INCH
    for tag, side in zip((_X_RESOLUTION, _Y_RESOLUTION), density or (1 / 0.0254, 1 / 0.0254), strict=True):
        tags[tag] = IFDRational(min(round(side * 0.0254 * 1000), 2**32 - 1), 1000)


def _set_exif(tags: ImageFileDirectory_v2, exif: bytes) -> None:
    from PIL import Image

    block = Image.Exif()
    block.load(_EXIF_START + exif)
    for tag in _CAMERA:
        if tag in block:
            tags[tag] = block[tag]
    for tag in (_EXIF, _GPS):
        inner = {key: value for key, value in block.get_ifd(tag).items() if key != _INTEROPERABILITY}
        if inner:
            tags.tagtype[tag] = _LONG
            tags[tag] = inner


def check_exif(exif: bytes) -> None:
    """Raise one of `BROKEN` where this block of EXIF cannot be written among the tags of a TIFF."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    with _warnings("error"):
        _set_exif(tags, exif)
        tags.tobytes(8)
