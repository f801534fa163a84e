"""Files that contenders must not change; a change is seen without reading them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Marks(dict[str, tuple[int, ...]]):
    """Path -> inode, mode, size and times of a file. Each change of a file changes its ctime, which no call sets."""


Find = Callable[[], Iterable[str]]
"""Lists the files that must not change, as they are found now."""


def marks(paths: Iterable[str]) -> Marks:
    """Of the files that exist."""
    return Marks((path, mark) for path in paths if (mark := _mark(path)))


def _mark(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _none() -> tuple[str, ...]:
    return ()


_find: Find = _none


def watched_files() -> Marks:
    """The marks of the files that must not change while contenders run."""
    return marks(_find())


@contextmanager
def watching_files(find: Find | None) -> Iterator[None]:
    """Within it, the files that `find` names must not change. None: no file is watched, for no foreign code runs."""
    global _find
    outer, _find = _find, find or _none
    try:
        yield
    finally:
        _find = outer
