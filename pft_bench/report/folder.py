"""A run folder as the reports read it: its records, the environments they were taken in, and their roofs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ..measure.roof import Roof
from ..record import Record, RecordError, known_environments, read_records

RECORDS, QUALITY = "records.jsonl", "quality.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """What `pft-bench run` left in a folder. `environments` maps fingerprints to what was found then."""

    path: Path
    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]]
    quality: Mapping[str, float] = field(default_factory=dict)
    """Case id -> mean PSNR in dB over the images of all data sets, where `pft-bench evaluate` wrote it beside."""
    truncated: tuple[str, ...] = ()
    """Lines whose writer was interrupted: what they were cannot be known, so they are named."""
    unsealed: frozenset[str] = frozenset()
    """Ids of the records whose line carries no digest."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def backends(self) -> list[str]:
        """All that its records ran on, in their order: the look of each is by its place here."""
        return list(dict.fromkeys(record.case.backend for record in self.records))

    def environment(self, record: Record) -> Mapping[str, Any]:
        """The environment of a record; empty where the folder does not know it."""
        return self.environments.get(record.environment, {})

    def roof(self, record: Record) -> Roof | None:
        """The roof measured at the beginning of the run that made the record."""
        found = self.environment(record).get("now", {}).get("roof")
        return None if found is None else Roof(**found)

    def quality_db(self, record: Record) -> float | None:
        """Mean PSNR of the model of a record; None where nobody measured it."""
        return self.quality.get(record.case_id)


def _quality(path: Path, records: Sequence[Record]) -> dict[str, float]:
    """From the rows of an evaluation; a variant without a metric has none."""
    if not path.is_file():
        return {}
    from ..quality.evaluate import read_rows  # here: few folders have one, and it needs scikit-image
    from .quality import by_variant, means

    averages = means(read_rows(path))
    found = {}
    models = (r for r in records if r.case.level == "model" and "sched" in r.case.options)
    for variant, record in by_variant(models).items():
        values = [mean.psnr_db for mean in averages.get(variant, {}).values()]
        if values and all(map(math.isfinite, values)):
            found[record.case_id] = fmean(values)
    return found


def read_folder(path: Path | str) -> RunFolder:
    """Read a run folder.

    Raises:
        RecordError: there are no records, a line is none, or environment.json is not what a run writes.
    """
    path = Path(path)
    if not (path / RECORDS).is_file():
        raise RecordError(f"expected a run folder with {RECORDS}, got {path}")
    scan = read_records(path / RECORDS)
    if not scan.records:
        raise RecordError(f"{path / RECORDS} holds no record")
    known, quality = known_environments(path), _quality(path / QUALITY, scan.records)
    truncated = tuple(str(problem) for problem in scan.truncated)
    return RunFolder(path, scan.records, known, quality, truncated, scan.unsealed)


def command_text(environment: Mapping[str, Any]) -> str | None:
    """The command line that made the run, as one would type it."""
    command = (environment.get("host") or {}).get("command")
    if not command:
        return None
    return shlex.join([Path(command[0]).name, *command[1:]])


def machine_text(environment: Mapping[str, Any]) -> str:
    """Processor and GPU in a few words."""
    cpu, gpu = environment.get("cpu") or {}, environment.get("gpu")
    words = [f"{cpu.get('model', 'unknown processor')}, {cpu.get('cores_usable') or '?'} cores"]
    if gpu:
        words.insert(0, str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu))
    return "; ".join(words)


def commit_text(environment: Mapping[str, Any]) -> str | None:
    """The commit in twelve digits, and whether files were changed on top of it."""
    git = environment.get("git") or {}
    if not git.get("commit"):
        return None
    return str(git["commit"])[:12] + (" with uncommitted changes" if git.get("dirty") else "")
