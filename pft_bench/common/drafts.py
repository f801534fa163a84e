"""Files that are written whole or not at all, and errors that name the file that was asked for."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def named(path: Path | str, *drafts: str) -> Iterator[None]:
    """An OSError that names no file, as that of a full disk, or one of `drafts`, names `path` instead."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.filename is None or os.fspath(error.filename) in drafts):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


@contextmanager
def draft(path: Path | str) -> Iterator[Path]:
    """A new file beside `path`, of the same suffix, which takes the place of `path` when the block ends.

    Where anything goes wrong it is removed, and what `path` held stays. A link stays one: what it leads to is replaced.

    Raises:
        OSError: the file cannot be written; it names `path`, never the draft. A folder, a device or a pipe is refused.
    """
    require_file(path)
    target = Path(os.path.realpath(path))
    made = _beside(path, target)
    try:
        with named(path, made):
            yield Path(made)
            umask = os.umask(0)
            os.umask(umask)
            # mkstemp's own mode hides the file from everybody else
            os.chmod(made, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~umask)
            os.replace(made, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def _beside(path: Path | str, target: Path) -> str:
    """The name of a new, empty draft in the folder of `target`."""
    try:
        descriptor, made = tempfile.mkstemp(prefix=".", suffix=f".part{target.suffix}", dir=target.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    return made


def require_writable(path: Path | str) -> None:
    """OSError, which names `path`, where it could not be written: better known before minutes of work.

    The folder it is in is made.
    """
    require_file(path)
    make_folder(Path(path).parent)
    os.unlink(_beside(path, Path(os.path.realpath(path))))


def require_file(path: Path | str) -> None:
    """OSError where `path` is there and no file: writing to it would not make one."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a folder, not a file", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is a device or a pipe, not a file", str(path))


def make_folder(path: Path | str) -> Path:
    """The folder, with those above it; OSError that names what is in its way."""
    path = Path(path)
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if place.exists():
            raise NotADirectoryError(errno.ENOTDIR, "Is a file, not a folder", str(place))
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`, which is on the disk before the name changes.

    Unlike those of `draft`, the draft has one fixed name, so that a killed writer leaves at most one, which the next
    takes over: only one process may write `path` at a time. Raises OSError with the name of `path`, never the draft's.
    """
    made = path.with_name(f".{path.name}.part")
    with named(path, os.fspath(made)):
        try:
            with made.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
        except BaseException:
            with suppress(OSError):
                made.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; some file systems cannot, and the file is there all the same."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
