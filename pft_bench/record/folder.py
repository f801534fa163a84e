"""The run folder: records as lines of one file, written so that a kill loses nothing, and locked for one writer."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .parts import RecordError
from .schema import SCHEMA, Record

_LINE_START = f'{{"schema":"{SCHEMA}"'
_LINE_END = re.compile(r'"created":"[^"]*"\}$')


@dataclass(frozen=True)
class Problem:
    """A line that gave no record."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """All records of a file, and what was not one: lines cut short by a kill, and foreign or damaged
    lines.
    """

    records: tuple[Record, ...]
    truncated: tuple[Problem, ...]
    foreign: tuple[Problem, ...]


def scan_records(path: Path | str) -> Scan:
    """Read every line of a JSONL file and say of each what it is. Nothing is skipped in silence."""
    path = Path(path)
    records: list[Record] = []
    truncated: list[Problem] = []
    foreign: list[Problem] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw:
            continue
        text = raw.decode("utf-8", errors="replace")
        try:
            records.append(Record.from_json(text))
        except RecordError as error:
            # A killed writer's line begins like one of ours and lacks its end; with both it is damage.
            begun = text.startswith(_LINE_START) or _LINE_START.startswith(text)
            if begun and not _LINE_END.search(text):
                truncated.append(Problem(path, number, "truncated line (its writer was interrupted)"))
            else:
                foreign.append(Problem(path, number, str(error)))
    return Scan(tuple(records), tuple(truncated), tuple(foreign))


def read_records(path: Path | str) -> Scan:
    """As `scan_records`, but foreign or damaged lines are an error that names each of them."""
    scan = scan_records(path)
    if scan.foreign:
        raise RecordError("\n".join(str(problem) for problem in scan.foreign))
    return scan


class RecordWriter:
    """Appends records to a JSONL file; each is on the disk before `append` returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._write(b"\n")  # a killed writer's last line stays apart from the next one

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def append(self, record: Record) -> None:
        """Write one line and force it to the disk."""
        self._write(record.to_json().encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderLocked(RuntimeError):
    """Another run is writing this folder."""


@contextmanager
def lock_folder(folder: Path | str) -> Iterator[Path]:
    """Hold a run folder for one writer. The kernel frees the lock when the process ends, however it ends."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise FolderLocked(f"{folder} is being written by process {owner}; take another folder") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield folder


def remember_environment(folder: Path | str, found: Mapping[str, Any]) -> str:
    """Add an environment to the folder's `environment.json` (by fingerprint) and return its fingerprint.

    A resumed run may go on under another commit or thread count: each record keeps pointing at its own.
    """
    path = Path(folder) / "environment.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    name = str(found["fingerprint"])
    known.setdefault(name, dict(found))
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(known, indent=1) + "\n")
    draft.replace(path)  # whole or not at all
    return name
