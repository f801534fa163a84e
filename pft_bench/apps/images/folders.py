"""Which files of a folder are pictures: one rule for every command."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""What is read; the content decides, not the name, but only files with such a name are looked for in a folder."""
OTHER_SUFFIXES = (
    *(".gif", ".dib", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpe", ".jfif", ".svg", ".svgz"),
    *(
        ".apng",
        ".ico",
        ".psd",
        ".psb",
        ".xcf",
        ".exr",
        ".hdr",
        ".tga",
        ".pbm",
        ".pgm",
        ".ppm",
        ".pnm",
        ".pfm",
    ),
    *(".pcx", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef"),
)
"""What pictures also come in, and what is not read here: such files in a folder are named, not passed over."""
_LEFT_BY_SYSTEMS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
)


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden, or one that an operating system or a file server makes for itself."""
    return path.name.startswith(".") or path.name.lower() in _LEFT_BY_SYSTEMS


def list_pictures(folder: Path, suffixes: Collection[str] = READ_SUFFIXES) -> list[Path]:
    """Files of these suffixes in `folder` itself, sorted by name, less what is hidden."""
    found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes)
    return [path for path in found if path.is_file() and not is_hidden(path)]


def walk_pictures(
    folder: Path, suffixes: Collection[str] = READ_SUFFIXES, *, without: Path | None = None
) -> list[Path]:
    """Files of these suffixes in `folder` and below, sorted by path, less what is hidden and what is in `without`.

    Links to folders are followed, each folder once. Raises OSError where a folder cannot be read.
    """
    found = [path for part in _parts(folder, without) for path in list_pictures(part, suffixes)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def pictures_left_out(folder: Path, *, deep: bool = True, without: Path | None = None) -> list[str]:
    """A line for each reason why files that seem to be pictures are not among those that are listed, or walked."""
    parts = _parts(folder, without) if deep else [folder]
    odd = [
        path
        for part in parts
        for path in sorted(part.iterdir())
        if path.suffix.lower() in READ_SUFFIXES and not (path.is_file() or path.is_dir() or is_hidden(path))
    ]
    others = [path for part in parts for path in list_pictures(part, OTHER_SUFFIXES)]
    reasons = {
        "left out, of formats that are not read here": others,
        "left out, as links that lead nowhere, pipes or devices": odd,
    }
    return [f"{reason}: {name_files(paths)}" for reason, paths in reasons.items() if paths]


def _parts(folder: Path, without: Path | None) -> list[Path]:
    left_out = None if without is None or _real(without) == _real(folder) else _real(without)
    return list(_folders(folder, left_out, set()))


def _folders(folder: Path, left_out: str | None, seen: set[str]) -> Iterator[Path]:
    real = _real(folder)
    if real in seen or real == left_out:
        return
    seen.add(real)
    yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_hidden(path):
            yield from _folders(path, left_out, seen)


def _real(path: Path) -> str:
    return os.path.realpath(path)


def name_files(paths: Sequence[Path], most: int = 5) -> str:
    """`3 (a.gif, b.gif, c.gif)`: how many, and the names of the first ones."""
    named = [path.name for path in paths[:most]] + (["..."] if len(paths) > most else [])
    return f"{len(paths)} ({', '.join(named)})"
