"""The files of a run while foreign code runs. Their content is kept in memory: a change by a plug-in is reported and
undone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...common.drafts import write_whole
from ..measure.process_state import Marks, marks
from ..record import ENVIRONMENTS, LOCK, PLAN, SETTINGS, WRITTEN, record_file, seal


@dataclass(frozen=True)
class RunFiles:
    """Which files of a folder a run, or a share of one, alone may write."""

    folder: Path
    shard: str | None = None

    def __call__(self) -> list[str]:
        """The files that exist or should; of records and locks all that exist, since readers take them all."""
        records = {*map(str, self.folder.glob("records-*of*.jsonl")), str(record_file(self.folder))}
        locks = {str(self.folder / LOCK)}
        if self.shard is None:
            locks |= {*map(str, self.folder.glob(f"{LOCK}-*of*"))}
            others = [ENVIRONMENTS, SETTINGS, PLAN]
        else:  # the other shares of the same division write files of their own, and add to what they share
            records = {
                name for name in records if not name.endswith(f"of{self.shard.partition('of')[2]}.jsonl")
            }
            records |= {str(record_file(self.folder, self.shard))}
            locks |= {str(self.folder / f"{LOCK}-{self.shard}")}
            others = [SETTINGS]
        return sorted({*records, *locks, *(str(self.folder / name) for name in others)})

    def appearing(self) -> list[str]:
        """Those that another may write where they are not there yet: the first share that begins, for all of them."""
        return [] if self.shard is None else [str(self.folder / SETTINGS)]

    def growing(self) -> list[str]:
        """Those to which others may add: other shares, or `pft-bench report` while the run goes on."""
        names = (WRITTEN,) if self.shard is None else (WRITTEN, ENVIRONMENTS, PLAN)
        return [str(self.folder / name) for name in names]


class HeldFolder:
    """A run folder as its run left it. Nothing is held before the first `retake`; the folder must be locked then."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self._known: dict[str, bytes] = {}
        self._links: frozenset[str] = frozenset()
        self._marks: Marks | None = None
        self._mode = 0
        self._target = ""
        self._pending: list[str] = []
        self._locks: list[IO[bytes]] = []

    def retake(self) -> None:
        """Take the present content of the files as right."""
        if self.files.folder.is_dir():
            self._mode = stat.S_IMODE(os.stat(self.files.folder).st_mode)
        self._target = os.path.realpath(self.files.folder)
        every = self._all_paths()
        self._links = frozenset(filter(os.path.islink, every))
        own = [path for path in every if path not in self._links]
        self._known = {path: content for path in own if (content := _read(path)) is not None}
        self._marks = marks(own)

    def changed(self) -> list[str]:
        """Restore files that others have changed since the last call; their names.

        Raises:
            OSError: one cannot be written.
        """
        found, self._pending = [*self._pending, *self._put_back()], []
        return list(dict.fromkeys(found))

    def release(self) -> None:
        """Hold nothing any more, after the last line of the run."""
        self._marks = None
        while self._locks:
            self._locks.pop().close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The run itself writes inside. Earlier changes by others are undone first; the next `changed` reports them."""
        self._pending += self._put_back()
        try:
            yield
        finally:
            if self._marks is not None:
                self.retake()

    def _all_paths(self) -> list[str]:
        return [*self.files(), *self.files.growing()]

    def _paths(self) -> list[str]:
        """Without files that were links when they were taken in: the user keeps those elsewhere."""
        return [path for path in self._all_paths() if path not in self._links]

    def _put_back(self) -> list[str]:
        if self._marks is None:
            return []
        self._open_folder()
        if marks(self._paths()) == self._marks:
            return []
        growing, appearing, found = set(self.files.growing()), set(self.files.appearing()), []
        for path in sorted({*self._known, *self._paths()}):
            before, now = self._known.get(path), _read(path)
            if now == before and not os.path.islink(path):
                continue
            if path in growing and (before is None or (now is not None and _added(before, now))):
                continue
            if path in appearing and before is None and now is not None and _added(b"{}", now):
                continue
            found.append(os.path.basename(path))
            if before is None:
                _remove(path)
            elif os.path.basename(path).startswith(LOCK):
                self._write_lock(path, before)
            else:
                _remove(path, unless_file=True)
                write_whole(Path(path), before)
        self.retake()
        return found

    def _open_folder(self) -> None:
        """Make the folder again where it is gone, and give it the permissions that it had."""
        folder = self.files.folder
        if not folder.is_dir():
            if os.path.lexists(self._target) and not os.path.isdir(self._target):
                os.unlink(self._target)
            os.makedirs(self._target, exist_ok=True)
        if not folder.is_dir():  # it was a link to there
            _remove(str(folder))
            os.symlink(self._target, folder)
        if self._mode and stat.S_IMODE(os.stat(folder).st_mode) != self._mode:
            os.chmod(folder, self._mode)

    def _write_lock(self, path: str, content: bytes) -> None:
        """Write in place, because a new file would not be locked; where the file is gone, the new one is locked until
        the `release`.
        """
        _remove(path, unless_file=True)
        shared = self.files.shard is not None and os.path.basename(path) == LOCK
        lock = open(path, "a+b")  # noqa: SIM115 - held as long as this is
        self._locks.append(lock)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:  # this run's own lock is on it
            self._locks.remove(lock)
        lock.truncate(0)
        lock.write(content)
        lock.flush()
        if lock not in self._locks:
            lock.close()


def _read(path: str) -> bytes | None:
    """The content of a regular file; None where there is none."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _remove(path: str, *, unless_file: bool = False) -> None:
    """Remove a file, a link or a folder; with `unless_file`, a regular file stays."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path) and not (unless_file and os.path.isfile(path) and not os.path.islink(path)):
        os.unlink(path)


def _added(before: bytes, now: bytes) -> bool:
    """Whether `now` is the JSON object `before` with additions only, and a right seal where it has one."""
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return False
    return isinstance(new, dict) and new.get("seal", seal(new)) == seal(new) and _contains(new, old)


def _contains(new: Any, old: Any) -> bool:
    if isinstance(old, dict):
        return isinstance(new, dict) and all(
            key in new and _contains(new[key], value) for key, value in old.items() if key != "seal"
        )
    if isinstance(old, list):
        return isinstance(new, list) and all(item in new for item in old)
    return bool(new == old)
