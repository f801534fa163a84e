"""The same case over time: committed run folders in the order of their dates, and where a case changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ...common.text import counted
from ..measure.statistics import log_ratios, median
from ..measure.verdicts import MARGIN, Evidence, Verdict, judge
from ..record import Record, RunFolder, record_files
from ..record.yardsticks import YARDSTICKS
from .folders import between, describe, obstacles


@dataclass(frozen=True)
class HistoryPoint:
    """One run of a case: where and when, its median, and its time over the baseline's in the same rounds.

    `change` is the verdict against the point before, None for the first and for a yardstick; `incomparable` says why
    there is none.
    """

    record: Record
    folder: Path
    commit: str
    created: str
    median_s: float
    relative: float
    evidence: Evidence | None = None
    change: Verdict | None = None
    incomparable: tuple[str, ...] = ()


@dataclass(frozen=True)
class HistorySeries:
    """All points of one case, oldest first."""

    case_id: str
    title: str
    points: tuple[HistoryPoint, ...]
    yardstick: bool = False

    @property
    def changes(self) -> tuple[HistoryPoint, ...]:
        """The points at which the case became faster or slower."""
        return tuple(point for point in self.points if point.change in (Verdict.FASTER, Verdict.SLOWER))


def run_folders(root: Path) -> list[Path]:
    """Folders below `root` that hold records, `root` itself included."""
    return sorted(folder for folder in (root, *root.rglob("*/")) if record_files(folder))


def history(folders: Sequence[Path], margin: float = MARGIN) -> list[HistorySeries]:
    """Every case that was timed next to a baseline, over all folders; verdicts corrected for all steps together.

    A run held to an instruction set (PFT_CPU_ISA) continues only runs held to the same. Yardsticks are shown without
    verdicts, and their steps take no part in the correction.
    """
    found: dict[str, list[tuple[RunFolder, Record]]] = {}
    for run in map(RunFolder.read, folders):
        for record in run.records:
            if record.timing is not None and record.timing.baseline is not None:
                found.setdefault(record.case_id + _forced(run, record), []).append((run, record))
    for points in found.values():
        points.sort(key=lambda item: item[1].created)
    steps: dict[str, Evidence] = {}
    blocked: dict[str, tuple[str, ...]] = {}
    for key, points in found.items():
        for number, ((a, one), (b, other)) in enumerate(pairwise(points), start=1):
            why = obstacles(a, b, one, other) + _other_baseline(one, other)
            if why:
                blocked[f"{key}/{number}"] = tuple(why)
            else:
                steps[f"{key}/{number}"] = between(one, other, margin)
    judged = {
        step: evidence
        for step, evidence in steps.items()
        if found[step.rpartition("/")[0]][0][1].case.backend not in YARDSTICKS
    }
    verdicts = judge(judged)
    series = []
    for key, points in found.items():
        made = []
        for number, (run, record) in enumerate(points):
            step = f"{key}/{number}"
            change = verdicts[step].verdict if step in verdicts else None
            made.append(_point(run, record, steps.get(step), change, blocked.get(step, ())))
        run, last = points[-1]
        title = f"{describe(last)}: {problem_of(last)}{_forced(run, last)}"
        series.append(HistorySeries(last.case_id, title, tuple(made), last.case.backend in YARDSTICKS))
    return sorted(series, key=lambda item: item.title)


def problem_of(record: Record) -> str:
    """What a case computes on: the model and its input (height x width), or windows; how, where that is unusual."""
    case, shapes = record.case, record.case.shapes
    if "height" in shapes:
        words = [f"{shapes['height']}x{shapes['width']} input"]
    else:
        parts = {"windows": "window", "tokens": "token", "heads": "head"}
        words = [counted(shapes[name], one) for name, one in parts.items() if name in shapes]
    unusual = [word for word in (case.mode, case.dtype) if word not in ("infer", "float32")]
    return ", ".join([*filter(None, [case.preset]), *words, *unusual])


def _forced(run: RunFolder, record: Record) -> str:
    """The instruction set that the run was held to; its times are a series of their own, not a step of the others."""
    isa = (run.environment(record).get("variables") or {}).get("PFT_CPU_ISA")
    return "" if isa is None else f" ({isa})"


def _other_baseline(one: Record, other: Record) -> list[str]:
    assert one.timing is not None
    assert one.timing.baseline is not None
    assert other.timing is not None
    assert other.timing.baseline is not None
    names = one.timing.baseline.name, other.timing.baseline.name
    return [] if names[0] == names[1] else [f"baselines differ: {names[0]}, {names[1]}"]


def _point(
    run: RunFolder, record: Record, evidence: Evidence | None, change: Verdict | None, why: tuple[str, ...]
) -> HistoryPoint:
    timing = record.timing
    assert timing is not None
    assert timing.baseline is not None
    git = run.environment(record).get("git") or {}
    relative = median(log_ratios(timing.samples_s, timing.baseline.samples_s))
    return HistoryPoint(
        record,
        run.path,
        str(git.get("commit") or "unknown")[:10] + ("+" if git.get("dirty") else ""),
        record.created,
        median(timing.samples_s),
        math.exp(relative),
        evidence,
        change,
        why,
    )
