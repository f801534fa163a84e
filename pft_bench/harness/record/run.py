"""A run folder as one value to read, and as one to write.

A case that occurs twice counts once: the first record is the one that `--resume` took for done. The others are kept on
the disk and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measure.roof import Roof
from .beside import ENVIRONMENTS, known_environments, known_plan, remember_environment
from .folder import RecordWriter, lock_folder, read_folder, record_file, record_files
from .parts import RecordError
from .schema import Record

SHOWN = 8
"""Missing groups that are named; of more, the number is told."""


def roof_of(environment: Mapping[str, Any]) -> Roof | None:
    """The roof that was measured in an environment; None where there is none."""
    found = (environment.get("now") or {}).get("roof")
    try:
        return None if found is None else Roof(**found)
    except TypeError:
        raise RecordError(
            f"{ENVIRONMENTS}: the roof must be rates and how they were measured, got {found!r}"
        ) from None


@dataclass(frozen=True)
class RunFolder:
    """What a run left in a folder. `environments` maps fingerprints to what was found then."""

    path: Path
    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]]
    quality: Mapping[str, float] = field(default_factory=dict)
    """Case id -> mean PSNR in dB over the images of all data sets, where `pft-bench evaluate` wrote it beside."""
    notes: tuple[str, ...] = ()
    """Lines that are no record because their writer was interrupted, and records of cases that are there already."""
    unsealed: frozenset[str] = frozenset()
    """Ids of the records whose line carries no digest."""
    plan: Mapping[str, str] = field(default_factory=dict)
    """Case id -> title of its group, of all that the folder is to hold; empty for older versions."""

    @classmethod
    def read(cls, path: Path | str) -> RunFolder:
        """Read a run folder, shares of a sweep that are not merged yet included.

        Raises:
            RecordError: there are no records, a line is none, or environment.json is not what a run writes.
        """
        path = Path(path)
        if not record_files(path):
            if not path.exists():
                raise RecordError(f"expected a run folder, got {path}, which does not exist")
            raise RecordError(f"expected a run folder with {record_file(path).name}, got {path}")
        scan = read_folder(path)
        if not scan.records:
            raise RecordError(f"{record_file(path)} holds no record")
        environments = known_environments(path)
        for environment in environments.values():
            roof_of(environment)  # one that is none is told now
        notes = tuple(str(line) for line in (*scan.truncated, *scan.repeated))
        plan = known_plan(path)
        return cls(path, scan.records, environments, notes=notes, unsealed=scan.unsealed, plan=plan)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def by_case(self) -> dict[str, Record]:
        """Case id -> its record."""
        return {record.case_id: record for record in self.records}

    @property
    def unfinished(self) -> str | None:
        """What is missing of the plan, in words; None where nothing is or nobody wrote the plan down."""
        done = self.by_case
        missing = list(dict.fromkeys(title for case_id, title in self.plan.items() if case_id not in done))
        count = len(set(self.plan.values()))
        named = ", ".join(missing[:SHOWN]) + (f", and {len(missing) - SHOWN} more" * (len(missing) > SHOWN))
        return f"unfinished: {len(missing)} of {count} groups missing ({named})" if missing else None

    @property
    def slower(self) -> str | None:
        """Why speed-ups of its dtype say little, in words (`Roof.slower`); None where they do not."""
        roofs = ((self.roof(record), record.case.dtype) for record in self.records)
        return next((told for roof, dtype in roofs if roof and (told := roof.slower(dtype))), None)

    @property
    def backends(self) -> list[str]:
        """All that its records ran on, in their order: the look of each is by its place here."""
        return list(dict.fromkeys(record.case.backend for record in self.records))

    @property
    def commit(self) -> str:
        """The commit of the last environment, ten digits, or "unknown"."""
        gits = [(found.get("git") or {}).get("commit") for found in self.environments.values()]
        return str(gits[-1])[:10] if gits and gits[-1] else "unknown"

    def environment(self, record: Record) -> Mapping[str, Any]:
        """The environment of a record; empty where the folder does not know it."""
        return self.environments.get(record.environment, {})

    def roof(self, record: Record) -> Roof | None:
        """The roof measured at the beginning of the run that made the record."""
        return roof_of(self.environment(record))

    def quality_db(self, record: Record) -> float | None:
        """Mean PSNR of the model of a record; None where nobody measured it."""
        return self.quality.get(record.case_id)


class RunWriter:
    """Adds environments and records to a run folder, or to one share of it. The folder has to be locked."""

    def __init__(self, path: Path | str, shard: str | None = None) -> None:
        self.path = Path(path)
        self._shard = shard

    def remember(self, found: Mapping[str, Any]) -> str:
        """Add an environment to the folder's; its fingerprint, to which records point."""
        return remember_environment(self.path, found)

    def append(self, record: Record) -> None:
        """Write a record; it is on the disk before this returns. The first one begins the file, which stays closed in
        between: it is found by its name each time.
        """
        with RecordWriter(record_file(self.path, self._shard)) as records:
            records.append(record)


@contextmanager
def begin_run(path: Path | str) -> Iterator[RunWriter]:
    """Lock a run folder, made if there is none, and write to it.

    Raises:
        FolderLocked: somebody else writes there.
    """
    with lock_folder(path) as folder:
        yield RunWriter(folder)
