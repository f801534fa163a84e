"""The figures of operators and layers: latency, memory and roofline against K, three for each setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..harness.measure.roof import Roof
from ..harness.record import Record
from . import words
from .series import (
    KEPT,
    Figure,
    Series,
    allocated,
    backend_series,
    median_s,
    same_setting,
    selects,
    setting_text,
)


def panels(records: Sequence[Record]) -> list[list[Record]]:
    """Measured operators and layers, one list for each setting, in their order."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.case.level in ("op", "layer") and record.derived is not None and record.case.k is not None:
            found.setdefault(same_setting(record), []).append(record)
    return list(found.values())


def panel_figures(records: Sequence[Record], roof_of: Callable[[Record], Roof | None]) -> list[Figure | None]:
    """Three figures for each setting. File names say no more than they must: nothing, the operator, its number too."""
    groups = panels(records)
    ops = [group[0].case.op for group in groups]
    found: list[Figure | None] = []
    for number, group in enumerate(groups):
        op = ops[number]
        key = f"_{op}" if len(groups) > 1 else ""
        key += f"_{ops[:number].count(op) + 1}" if ops.count(op) > 1 else ""
        roof = roof_of(group[-1])
        found += [
            latency_figure(group, roof, key),
            memory_figure(group, key),
            roofline_figure(group, roof, key),
        ]
    return found


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


def _what(records: Sequence[Record]) -> str:
    case = records[0].case
    return "One attention layer" if case.level == "layer" else case.op


def _hollow_note(series: Sequence[Series]) -> str:
    if any(point.hollow for part in series for point in part.points):
        return "Joined: K candidates, K kept. Hollow: the layer also selects its K from more candidates. "
    return ""


def latency_figure(records: Sequence[Record], roof: Roof | None, key: str) -> Figure | None:
    """Latency against K with the quartiles of its samples; below it the least time that the roof allows."""
    series = backend_series(records, lambda r: r.case.k, median_s, spread=True)
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
        KEPT,
        "time of a call",
        series,
        words.whole,
        words.seconds,
        tuple(sorted(floor.items())),
        setting=setting_text(records[0]),
    )


def memory_figure(records: Sequence[Record], key: str) -> Figure | None:
    """Peak allocated memory against K."""
    series = backend_series(records, lambda r: r.case.k, allocated)
    if not series:
        return None
    return Figure(
        f"memory_vs_k{key}",
        "curves",
        f"{_what(records)}: memory",
        f"Peak that the allocator held during one call, above its start. {_hollow_note(series)}"
        f"{setting_text(records[0])}.",
        KEPT,
        "peak allocated",
        series,
        words.whole,
        words.size,
        setting=setting_text(records[0]),
    )


def roofline_figure(records: Sequence[Record], roof: Roof | None, key: str) -> Figure | None:
    """Rate against arithmetic intensity, under the measured roofs."""
    series = backend_series(records, intensity, rate)
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
        setting=setting_text(records[0]),
    )
