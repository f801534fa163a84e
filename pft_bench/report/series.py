"""What the figures show: series of points, each with the record it comes from. Every renderer draws these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..common.text import file_name
from ..harness.measure.roof import Roof
from ..harness.record import Record, Status, threads_text
from . import words
from .tables import contender_text, step_text, work_text

Value = Callable[[Record], float | None]
Quality = Callable[[Record], float | None]
"""Mean PSNR in dB of the model of a record, None where nobody measured it."""


@dataclass(frozen=True)
class Point:
    """One measured value. `low` and `high` are the quartiles of its samples where it is a time, the 95% interval where
    it is a ratio of times."""

    record: Record
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    quality_db: float | None = None
    """Mean PSNR of what the model restored, where an evaluation measured it."""

    @property
    def label(self) -> str:
        """What was measured, in words."""
        return f"{step_text(self.record)} on {contender_text(self.record)}"


@dataclass(frozen=True)
class Series:
    """The points of one backend; `line` joins the filled ones."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Figure:
    """One figure: its series, how to write its values, and the line of what is possible (`floor`), if any."""

    key: str
    kind: Literal["curves", "roofline", "pareto"]
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

    @property
    def y_base(self) -> int:
        """What the ticks of the vertical axis are powers of: bytes go by two."""
        return 2 if self.y_text is words.size else 10

    @property
    def points(self) -> list[Point]:
        """All points of all series."""
        return [point for series in self.series for point in series.points]


def same_setting(record: Record) -> tuple[object, ...]:
    """What all points of one figure have in common: everything but backend, candidates and K."""
    case = record.case
    shapes = tuple((name, size) for name, size in case.shapes.items() if name != "candidates")
    return (case.level, case.op, shapes, case.dtype, case.mode, case.device, case.threads)


def setting_text(record: Record) -> str:
    """The same in words."""
    case = record.case
    sizes = ", ".join(f"{size} {name}" for name, size in case.shapes.items() if name != "candidates")
    words = [sizes, case.dtype, case.mode]
    if case.device == "cpu" and case.level != "threads":
        words.append(threads_text(case.threads))
    return ", ".join(word for word in words if word)


def panels(records: Sequence[Record]) -> list[list[Record]]:
    """Measured operators and layers, one list for each setting, in their order."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.case.level in ("op", "layer") and record.derived is not None and record.case.k is not None:
            found.setdefault(same_setting(record), []).append(record)
    return list(found.values())


def selects(record: Record) -> bool:
    """Whether the layer has more candidates than it keeps."""
    return record.case.shapes.get("candidates", record.case.k) != record.case.k


def median_s(record: Record) -> float | None:
    """Median seconds of a call."""
    return None if record.derived is None else record.derived.median_s


def allocated(record: Record) -> float | None:
    """Peak bytes of the allocator; None where nothing was measured or nothing was allocated."""
    return record.memory.peak_allocated_bytes or None


def rate(record: Record) -> float | None:
    """FLOP/s of what the algorithm must do (`kernel_flops` over the median time)."""
    if record.derived is None or not record.flops.kernel_flops:
        return None
    return record.flops.kernel_flops / record.derived.median_s


def intensity(record: Record) -> float | None:
    """FLOP a byte that the algorithm must move."""
    if not record.flops.kernel_flops or not record.flops.kernel_bytes:
        return None
    return record.flops.kernel_flops / record.flops.kernel_bytes


def quartiles(record: Record) -> tuple[float, float]:
    """First and third quartile of the samples, in seconds."""
    assert record.timing is not None
    low, high = np.percentile(np.array(record.timing.samples_s), [25, 75])
    return float(low), float(high)


def _series(records: Sequence[Record], x: Value, y: Value, *, spread: bool = False) -> tuple[Series, ...]:
    found: dict[str, list[Point]] = {}
    for record in records:
        at, value = x(record), y(record)
        if at is None or value is None:
            continue
        low, high = quartiles(record) if spread else (None, None)
        point = Point(record, at, value, low, high, hollow=selects(record))
        found.setdefault(record.case.backend, []).append(point)
    return tuple(
        Series(name, tuple(sorted(points, key=lambda p: (p.hollow, p.x)))) for name, points in found.items()
    )


def _what(records: Sequence[Record]) -> str:
    case = records[0].case
    return "One attention layer" if case.level == "layer" else case.op


def _hollow_note(series: Sequence[Series]) -> str:
    if any(point.hollow for part in series for point in part.points):
        return "Joined: K candidates, K kept. Hollow: the layer also selects its K from more candidates. "
    return ""


def latency_figure(records: Sequence[Record], roof: Roof | None, key: str) -> Figure | None:
    """Latency against K with the quartiles of its samples; below it the least time that the roof allows."""
    series = _series(records, lambda r: r.case.k, median_s, spread=True)
    if not series:
        return None
    floor: dict[int, float] = {}
    if roof is not None:
        for record in records:
            if not selects(record) and record.case.k and record.flops.kernel_flops:
                floor[record.case.k] = roof.floor_s(record.flops.kernel_flops, record.flops.kernel_bytes or 0)
    note = "The dotted line is the least time that this machine's measured roofs allow. " if floor else ""
    return Figure(
        f"latency_vs_k{key}",
        "curves",
        f"{_what(records)}: latency",
        f"Median of the rounds, bars from first to third quartile. {_hollow_note(series)}{note}"
        f"{setting_text(records[0])}.",
        "kept entries K",
        "time of a call",
        series,
        words.whole,
        words.seconds,
        tuple(sorted(floor.items())),
    )


def memory_figure(records: Sequence[Record], key: str) -> Figure | None:
    """Peak allocated memory against K."""
    series = _series(records, lambda r: r.case.k, allocated)
    if not series:
        return None
    return Figure(
        f"memory_vs_k{key}",
        "curves",
        f"{_what(records)}: memory",
        f"Peak that the allocator held during one call, above its start. {_hollow_note(series)}"
        f"{setting_text(records[0])}.",
        "kept entries K",
        "peak allocated",
        series,
        words.whole,
        words.size,
    )


def roofline_figure(records: Sequence[Record], roof: Roof | None, key: str) -> Figure | None:
    """Rate against arithmetic intensity, under the measured roofs."""
    series = _series(records, intensity, rate)
    if not series or roof is None:
        return None
    return Figure(
        f"roofline{key}",
        "roofline",
        f"{_what(records)}: roofline",
        "Operations that the algorithm must do, over the median time, against its operations a byte. The line is "
        f"what this machine reached ({roof.method}): {words.rate(roof.flops_per_s)}, "
        f"{words.digits(roof.bytes_per_s / 1e9)} GB/s.",
        "operations a byte",
        "rate",
        series,
        words.digits,
        words.rate,
        roof=roof,
    )


def scaling_figures(records: Sequence[Record]) -> list[Figure]:
    """Speed-up over one thread against threads, a figure for each backend, a line for each layer or model."""
    measured = [r for r in records if r.case.level == "threads" and r.derived is not None]
    backends = list(dict.fromkeys(record.case.backend for record in measured))
    made = [_scaling([r for r in measured if r.case.backend == name], name) for name in backends]
    found = [figure for figure in made if figure is not None]
    return [replace(figure, key="threads") for figure in found] if len(found) == 1 else found


def _scaling(records: Sequence[Record], backend: str) -> Figure | None:
    works: dict[tuple[object, ...], list[Point]] = {}
    for record in records:
        case, derived = record.case, record.derived
        assert derived is not None
        point = Point(record, case.threads, 1.0)
        if derived.ratio is not None:
            low, high = derived.ratio_high, derived.ratio_low
            ends = (None, None) if low is None or high is None else (1 / low, 1 / high)
            point = Point(record, case.threads, 1 / derived.ratio, *ends)
        elif case.threads != 1:
            continue  # one thread has no time: nothing to hold it against
        # Everything but the threads; the name alone would join the layers of two models.
        shapes = tuple(case.shapes.items())
        works.setdefault((step_text(record), case.preset, shapes, case.dtype, case.mode), []).append(point)
    most = int(max((point.x for points in works.values() for point in points), default=1))
    if most == 1:
        return None
    series = [
        Series(
            work_text(points[0].record).replace("->", "→"), tuple(sorted(points, key=lambda point: point.x))
        )
        for points in works.values()
    ]
    case = records[0].case
    return Figure(
        f"threads_{file_name(backend)}",
        "curves",
        f"Threads: {backend}",
        "Speed-up over one thread in the same rounds, bars its 95% interval. The dotted line is the ideal, "
        f"as many times as threads. {case.dtype}, {case.mode}.",
        "threads",
        "times as fast as 1 thread",
        tuple(series),
        words.whole,
        words.digits,
        floor=((1.0, 1.0), (float(most), float(most))),
        floor_name="ideal",
    )


def pareto_figure(records: Sequence[Record], quality_db: Quality) -> Figure | None:
    """Latency against memory of whole models: fewer milliseconds left, fewer bytes below; PSNR where it is known."""
    chosen = [r for r in records if r.case.level == "model" and r.status is Status.OK]
    series = tuple(
        replace(part, points=tuple(replace(p, quality_db=quality_db(p.record)) for p in part.points))
        for part in _series(chosen, median_s, allocated)
    )
    if sum(len(part.points) for part in series) < 2:
        return None
    known = [point.quality_db is not None for part in series for point in part.points]
    quality = (
        "Mean PSNR stands at each point; a point is on the front if nothing beats it in time, memory and PSNR at once."
        if all(known)
        else "Random weights: quality means nothing here, so the front is of time and memory alone."
        if all(r.case.options.get("weights") == "generated" for r in chosen)
        else "Quality was not measured, so the front is of time and memory alone."
    )
    case = chosen[0].case
    size = f"{case.preset}, {case.shapes['height']}x{case.shapes['width']} input"
    return Figure(
        "pareto",
        "pareto",
        "Whole model: time and memory",
        f"Left and down is better; the line joins what nothing else beats. {quality} {size}, "
        f"{case.dtype}, {case.mode}.",
        "time of a call",
        "peak allocated",
        series,
        words.seconds,
        words.size,
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


def unknown(record: Record) -> float | None:
    """No evaluation: no PSNR."""
    return None


def figures(
    records: Sequence[Record], roof_of: Callable[[Record], Roof | None], quality_db: Quality = unknown
) -> list[Figure]:
    """Every figure that the records allow, in the order of the page."""
    found: list[Figure | None] = []
    groups = panels(records)
    ops = [group[0].case.op for group in groups]
    for number, group in enumerate(groups):
        # File names say no more than they must: nothing, the operator, the operator and its number.
        op = ops[number]
        key = f"_{op}" if len(groups) > 1 else ""
        key += f"_{ops[:number].count(op) + 1}" if ops.count(op) > 1 else ""
        roof = roof_of(group[-1])
        found += [
            latency_figure(group, roof, key),
            memory_figure(group, key),
            roofline_figure(group, roof, key),
        ]
    found += scaling_figures(records)
    found.append(pareto_figure(records, quality_db))
    return [figure for figure in found if figure is not None]
