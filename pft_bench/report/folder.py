"""A run folder as the reports read it: its records, the environments they were taken in, and their roofs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..harness.record import Record, RunFolder

if TYPE_CHECKING:
    from .quality import QualityTable

QUALITY = "quality.jsonl"


def _quality(path: Path, records: Sequence[Record]) -> dict[str, float]:
    """From the rows of an evaluation; a variant without a metric has none."""
    if not path.is_file():
        return {}
    from ..apps.quality.evaluate import read_rows  # here: few folders have one, and it needs scikit-image
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
    """Read a run folder, with the quality that an evaluation wrote beside its records.

    Raises:
        RecordError: there are no records, a line is none, or environment.json is not what a run writes.
    """
    return with_quality(RunFolder.read(path))


def with_quality(folder: RunFolder) -> RunFolder:
    """The folder with the quality of its models, where an evaluation wrote it beside.

    Raises:
        RecordError: a row of the evaluation is none.
    """
    return replace(folder, quality=_quality(folder.path / QUALITY, folder.records))


def quality_of(folder: RunFolder) -> QualityTable | None:
    """PSNR and SSIM that an evaluation wrote beside the records; None where there was none."""
    path = folder.path / QUALITY
    if not path.is_file():
        return None
    from ..apps.quality.evaluate import read_rows
    from .quality import quality_table

    return quality_table(read_rows(path))


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
    if quota := (environment.get("limits") or {}).get("cpu_quota"):
        words[0] += f" (CPU quota: {quota:g})"
    if gpu:
        words.insert(0, str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu))
    return "; ".join(words)


def commit_text(environment: Mapping[str, Any]) -> str | None:
    """The commit in twelve digits, and whether files were changed on top of it."""
    git = environment.get("git") or {}
    if not git.get("commit"):
        return None
    return str(git["commit"])[:12] + (" with uncommitted changes" if git.get("dirty") else "")
