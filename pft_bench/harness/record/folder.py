"""The run folder: records as lines of one file, written so that a kill loses nothing, and locked for one writer."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from ...common.drafts import make_folder, named
from ...common.messages import UserError
from ...common.text import Lines
from .parts import RecordError
from .schema import SCHEMA, Record

RECORDS = "records.jsonl"
"""The file's name."""

LOCK = ".lock"
"""How the names of locks begin, and that of the whole folder's."""

_LINE_START = f'{{"schema":"{SCHEMA}"'
_SEALED_END = re.compile(r'"seal":"[^"]*"\}$')
_LINE_END = re.compile(r'"(created|seal)":"[^"]*"\}$')


@dataclass(frozen=True)
class BadLine:
    """A line that gave no record."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """All records of a file, and what was not one: lines cut short by a kill, and foreign or damaged
    lines. `unsealed` are the ids of records of older versions, which wrote no digest.
    """

    records: tuple[Record, ...]
    truncated: tuple[BadLine, ...]
    foreign: tuple[BadLine, ...]
    unsealed: frozenset[str] = frozenset()
    repeated: tuple[BadLine, ...] = ()
    """Records of a case that another record has already, and which say something else."""
    lines: tuple[int, ...] = ()
    """Where each record stands, for the records of one file."""


def scan_records(path: Path | str) -> Scan:
    """Read every line of a JSONL file and say of each what it is. Nothing is skipped in silence."""
    path = Path(path)
    records: list[Record] = []
    lines: list[int] = []
    truncated: list[BadLine] = []
    foreign: list[BadLine] = []
    unsealed: set[str] = set()
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw:
            continue
        text = raw.decode("utf-8", errors="replace")
        try:
            records.append(Record.from_json(text))
            lines.append(number)
            if not _SEALED_END.search(text):
                unsealed.add(records[-1].case_id)
        except RecordError as error:
            # A killed writer's line begins like one of ours and lacks its end; with both it is damage.
            begun = text.startswith(_LINE_START) or _LINE_START.startswith(text)
            if begun and not _LINE_END.search(text):
                truncated.append(BadLine(path, number, "truncated line (its writer was interrupted)"))
            else:
                foreign.append(BadLine(path, number, str(error)))
    return Scan(tuple(records), tuple(truncated), tuple(foreign), frozenset(unsealed), lines=tuple(lines))


def read_records(path: Path | str) -> Scan:
    """As `scan_records`, but foreign or damaged lines are an error that names each of them."""
    scan = scan_records(path)
    if scan.foreign:
        raise RecordError(Lines.of(*scan.foreign))
    return scan


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RecordWriter:
    """Appends records to a JSONL file; each is on the disk before `append` returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        is_new = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            _sync_folder(self.path.parent)  # the name must survive a power cut as well
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._write(b"\n")  # a killed writer's last line stays apart from the next one

    def _write(self, data: bytes) -> None:
        with named(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)

    def append(self, record: Record, *, sealed: bool = True) -> None:
        """Write one line and force it to the disk."""
        self._write(record.to_json(sealed=sealed).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderLocked(UserError, RuntimeError):
    """Another run is writing this folder."""


def record_file(folder: Path | str, shard: str | None = None) -> Path:
    """Where a run writes its records; each share of a sweep (`2of4`) has a file of its own until it is merged."""
    return Path(folder) / (RECORDS if shard is None else f"records-{shard}.jsonl")


def record_files(folder: Path | str) -> list[Path]:
    """All files with records in a run folder, the merged one first."""
    found = [record_file(folder), *sorted(Path(folder).glob("records-*of*.jsonl"))]
    return [path for path in found if path.exists()]


def read_folder(folder: Path | str) -> Scan:
    """Everything in a run folder, each case once; foreign or damaged lines are an error that names each of them."""
    paths = record_files(folder)
    scans = [scan_records(path) for path in paths]
    foreign = [problem for scan in scans for problem in scan.foreign]
    if foreign:
        raise RecordError(Lines.of(*foreign))
    distinct: dict[str, Record] = {}
    unsealed: set[str] = set()
    repeated: list[BadLine] = []
    for path, scan in zip(paths, scans, strict=True):
        for number, record in zip(scan.lines, scan.records, strict=True):
            first = distinct.setdefault(record.case_id, record)
            if first is record and record.case_id in scan.unsealed:
                unsealed.add(record.case_id)
            # A merge that was killed leaves the same record both in the merged file and in a share's.
            if first != record:
                message = f"case {record.case_id} is there already, the first record counts"
                repeated.append(BadLine(path, number, message))
    truncated = tuple(problem for scan in scans for problem in scan.truncated)
    return Scan(tuple(distinct.values()), truncated, (), frozenset(unsealed), tuple(repeated))


def merge_shares(folder: Path | str, order: Sequence[str] = ()) -> None:
    """Move the shares' records to `records.jsonl`, in the order of case ids given. The folder must be locked.

    A kill at any moment loses nothing: a share's file goes when all of it is on the disk elsewhere.
    """
    merged = record_file(folder)
    shares = [path for path in record_files(folder) if path != merged]
    if not shares:
        return
    known = {record.case_id for record in read_records(merged).records} if merged.exists() else set()
    position = {case_id: number for number, case_id in enumerate(order)}
    scan = read_folder(folder)
    new = [record for record in scan.records if record.case_id not in known]
    with RecordWriter(merged) as writer:
        for record in sorted(new, key=lambda record: position.get(record.case_id, len(position))):
            writer.append(record, sealed=record.case_id not in scan.unsealed)
    for path in shares:
        path.unlink()


@contextmanager
def lock_folder(folder: Path | str, shard: str | None = None, *, wait: bool = False) -> Iterator[Path]:
    """Hold a run folder for one writer, or one of its shares (`1of2`) beside the others of the same division.

    The kernel frees the lock when the process ends, however it ends. `wait` for whoever holds it instead of raising.

    Raises:
        FolderLocked: somebody else writes there; the message has the process id.
    """
    folder = make_folder(folder)
    with ExitStack() as held:
        with named(folder, str(folder / LOCK)):
            whole = held.enter_context((folder / LOCK).open("a+"))
        if not _flock(whole, fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH, wait=wait):
            raise _locked(folder, _holders(folder) or {"": _pid(whole)})
        mine = whole
        if shard is not None:
            division = shard.partition("of")[2]
            others = {
                name: pid for name, pid in _holders(folder).items() if name.partition("of")[2] != division
            }
            if others:
                raise _locked(folder, others)
            with named(folder, str(folder / f"{LOCK}-{shard}")):
                mine = held.enter_context((folder / f"{LOCK}-{shard}").open("a+"))
            if not _flock(mine, fcntl.LOCK_EX, wait=wait):
                raise _locked(folder, {shard: _pid(mine)})
        with named(
            folder
        ):  # without a buffer, which would try again and fail without a name when it is closed
            os.ftruncate(mine.fileno(), 0)
            os.write(mine.fileno(), f"{os.getpid()}\n".encode())
        yield folder


def _flock(file: IO[str], kind: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip() or "unknown"


def _holders(folder: Path) -> dict[str, str]:
    """Share -> process id, of the shares that are being written now."""
    found = {}
    for path in folder.glob(f"{LOCK}-*of*"):
        with path.open("a+") as lock:
            if not _flock(lock, fcntl.LOCK_SH):
                found[path.name.removeprefix(f"{LOCK}-")] = _pid(lock)
    return found


def _locked(folder: Path, holders: Mapping[str, str]) -> FolderLocked:
    who = ", ".join(pid if not share else f"{pid} (share {share})" for share, pid in sorted(holders.items()))
    return FolderLocked(f"{folder} is being written by process {who}; take another folder")
