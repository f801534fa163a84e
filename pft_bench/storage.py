"""Files that are whole or not there: whatever happens while one is written, its name has the old or the new content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`, which is on the disk before the name changes.

    The draft beside it has one fixed name, so that a killed writer leaves at most one, which the next takes over: only
    one process may write `path` at a time. Raises OSError with the name of `path`, never the draft's.
    """
    draft = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        _sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside names `path`: one of a write names no file, one of a draft a file that nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; some file systems cannot, and the file is there all the same."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
