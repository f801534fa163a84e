"""What a figure shows: series of points, each with the record it comes from. `draw` makes pictures of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..harness.measure.roof import Roof
from ..harness.record import Record, Status, threads_text
from .tables import contender_text, step_text

Value = Callable[[Record], float | None]
Bar = tuple[float, float]
"""The two ends of a bar beside a point."""
Quality = Callable[[Record], float | None]
"""Mean PSNR in dB of the model of a record, None where nobody measured it."""


@dataclass(frozen=True)
class Point:
    """One measured value, with the bar along the axis of what was measured: of a time the quartiles of its samples, of
    a ratio of times the 95% interval.
    """

    record: Record
    x: float
    y: float
    y_bar: Bar | None = None
    x_bar: Bar | None = None
    hollow: bool = False
    note: str = ""
    """Words that stand beside it."""
    part: str = ""
    """The part of the record that it shows, such as a stage."""
    quality_db: float | None = None
    """Mean PSNR of what the model restored, where an evaluation measured it."""

    @property
    def label(self) -> str:
        """What was measured, in words."""
        return f"{step_text(self.record)} on {contender_text(self.record)}{f', {self.part}' if self.part else ''}"


@dataclass(frozen=True)
class Series:
    """The points of one backend; a line joins the filled ones."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Figure:
    """One figure: its series, how to write its values, and the line of what is possible (`floor`), if any."""

    key: str
    kind: Literal["curves", "quality", "roofline", "pareto", "speedup", "stages"]
    title: str
    caption: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    floor: tuple[tuple[float, float], ...] = ()
    floor_name: str = "roofline"
    roof: Roof | None = None
    setting: str = ""
    """What all its points have in common, in words: the second line of its title."""
    hollow: str = "also selects"
    """What a hollow point means, in a word or two."""
    x_log: bool = True
    y_log: bool = True
    measured: Literal["x", "y"] = "y"
    """The axis of what was measured; the other one tells the cases apart."""
    absent: tuple[str, ...] = ()
    """Backends without a point, and why: the legend names them."""

    @property
    def points(self) -> list[Point]:
        """All points of all series."""
        return [point for series in self.series for point in series.points]

    def words(self, point: Point) -> str:
        """A point in words: what it is, its value, its bar, and where it stands if its name does not tell."""
        value, ends, text = point.y, point.y_bar, self.y_text
        if self.measured == "x":
            value, ends, text = point.x, point.x_bar, self.x_text
        bar = "" if ends is None else f" ({text(ends[0])} to {text(ends[1])})"
        place = f", {self.x_title} {self.x_text(point.x)}" if self.measured == "y" else ""
        return f"{point.label}: {text(value)}{bar}{'' if self.x_title == KEPT else place}"


KEPT = "kept entries K"


def same_setting(record: Record) -> tuple[object, ...]:
    """What all points of one figure have in common: everything but backend, candidates and K."""
    case = record.case
    shapes = tuple((name, size) for name, size in case.shapes.items() if name != "candidates")
    return (case.level, case.op, shapes, case.dtype, case.mode, case.device, case.threads)


_WHY_ABSENT = {
    Status.FAILED: "failed its check",
    Status.ERROR: "raised an error",
    Status.OOM: "out of memory",
    Status.CRASHED: "crashed",
    Status.TIMEOUT: "timed out",
    Status.IMPLAUSIBLE: "implausibly fast",
}


def absent(figure: Figure, records: Iterable[Record]) -> tuple[str, ...]:
    """The backends that were asked for in the setting of a figure and have no point in it, each with the reason."""
    settings = {same_setting(point.record) for point in figure.points}
    shown = {point.record.case.backend for point in figure.points}
    if not shown.issuperset(part.name for part in figure.series):
        return ()  # its series are layers or stages: its legend names no backends
    why = {
        record.case.backend: _WHY_ABSENT[record.status]
        for record in records
        if record.status in _WHY_ABSENT and same_setting(record) in settings
    }
    return tuple(f"{name}: {reason}" for name, reason in why.items() if name not in shown)


def setting_text(record: Record) -> str:
    """The same in words."""
    case = record.case
    sizes = ", ".join(f"{size} {name}" for name, size in case.shapes.items() if name != "candidates")
    parts = [sizes, case.dtype, case.mode]
    if case.device == "cpu" and case.level != "threads":
        parts.append(threads_text(case.threads))
    return ", ".join(part for part in parts if part)


def model_text(record: Record) -> str:
    """Preset, input and setting of a whole model, in words."""
    case = record.case
    size = f"{case.shapes['height']}x{case.shapes['width']} input"
    name = "" if case.op == "system" else f"{case.preset}, "
    return f"{name}{size}, {case.dtype}, {case.mode}"


def selects(record: Record) -> bool:
    """Whether the layer has more candidates than it keeps."""
    return record.case.shapes.get("candidates", record.case.k) != record.case.k


def median_s(record: Record) -> float | None:
    """Median seconds of a call."""
    return None if record.derived is None else record.derived.median_s


def allocated(record: Record) -> float | None:
    """Peak bytes of the allocator; None where nothing was measured or nothing was allocated."""
    return record.memory.peak_allocated_bytes or None


def quartiles(record: Record) -> Bar:
    """First and third quartile of the samples, in seconds."""
    assert record.timing is not None
    low, high = np.percentile(np.array(record.timing.samples_s), [25, 75])
    return float(low), float(high)


def speedup_interval(record: Record) -> Bar | None:
    """The 95% interval of how many times faster than its baseline a record is; None where there is none."""
    derived = record.derived
    if derived is None or derived.ratio_low is None or derived.ratio_high is None:
        return None
    return 1 / derived.ratio_high, 1 / derived.ratio_low


def backend_series(
    records: Iterable[Record], x: Value, y: Value, *, spread: bool = False
) -> tuple[Series, ...]:
    """A series for each backend, of the records that have both values; `spread` adds the quartiles of the times."""
    found: dict[str, list[Point]] = {}
    for record in records:
        at, value = x(record), y(record)
        if at is None or value is None:
            continue
        point = Point(record, at, value, quartiles(record) if spread else None, hollow=selects(record))
        found.setdefault(record.case.backend, []).append(point)
    return tuple(
        Series(name, tuple(sorted(points, key=lambda p: (p.hollow, p.x)))) for name, points in found.items()
    )


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one equals or beats in time, memory and (where every point has it) PSNR."""
    qualities = [point.quality_db for point in points]
    ranked = all(quality is not None for quality in qualities)
    costs = [
        (point.x, point.y, -(quality or 0.0) if ranked else 0.0)
        for point, quality in zip(points, qualities, strict=True)
    ]
    front = [
        point
        for point, cost in zip(points, costs, strict=True)
        if not any(other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for other in costs)
    ]
    return sorted(front, key=lambda point: point.x)
