"""All figures that the records of a run allow: those of operators and layers, of threads, and of whole models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..common.text import file_name
from ..harness.measure.roof import Roof
from ..harness.record import Record, Status
from . import words
from .amdahl import stage_groups
from .mechanisms import PARTS, mechanism_figure
from .panels import panel_figures
from .series import (
    Figure,
    Point,
    Quality,
    Series,
    absent,
    allocated,
    backend_series,
    median_s,
    model_text,
    speedup_interval,
)
from .tables import contender_text, step_text, work_text


def unknown(record: Record) -> float | None:
    """No evaluation: no PSNR."""
    return None


def figures(
    records: Sequence[Record], roof_of: Callable[[Record], Roof | None], quality_db: Quality = unknown
) -> list[Figure]:
    """Every figure that the records allow, in the order of the page.

    No figure mixes environments: times of two machines are not comparable, and each has its own roof. Where a folder
    has records of several, key, setting and caption of a figure name its environment.
    """
    names = list(dict.fromkeys(record.environment for record in records))
    found: list[Figure] = []
    for name in names:
        own = [record for record in records if record.environment == name]
        made = [
            *panel_figures([record for record in own if record.case.op not in PARTS], roof_of),
            *scaling_figures(own),
            mechanism_figure(own),
            pareto_figure(own, quality_db),
            speedup_figure(own),
            stages_figure(own),
        ]
        for figure in filter(None, made):
            figure = replace(figure, absent=absent(figure, own))
            if len(names) > 1:
                figure = replace(
                    figure,
                    key=f"{figure.key}_{name}",
                    setting=f"{figure.setting}, environment {name}",
                    caption=f"{figure.caption} Environment {name}.",
                )
            found.append(figure)
    return found


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
            point = Point(record, case.threads, 1 / derived.ratio, speedup_interval(record))
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
        setting=f"{case.dtype}, {case.mode}",
    )


def pareto_figure(records: Sequence[Record], quality_db: Quality) -> Figure | None:
    """Latency against memory of whole models: fewer milliseconds left, fewer bytes below; PSNR where it is known."""
    chosen = [r for r in records if r.case.level == "model" and r.status is Status.OK]
    series = tuple(
        replace(part, points=tuple(_with_quality(point, quality_db) for point in part.points))
        for part in backend_series(chosen, median_s, allocated)
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
    return Figure(
        "pareto",
        "pareto",
        "Whole model: time and memory",
        f"Left and down is better; the line joins what nothing else beats. {quality} {model_text(chosen[0])}.",
        "time of a call",
        "peak allocated",
        series,
        words.seconds,
        words.size,
        setting=model_text(chosen[0]),
    )


def _with_quality(point: Point, quality_db: Quality) -> Point:
    found = quality_db(point.record)
    quality = "" if found is None else f", {found:.2f} dB"
    return replace(point, quality_db=found, note=f"{step_text(point.record)}{quality}")


def speedup_figure(records: Sequence[Record]) -> Figure | None:
    """Speed-up of the whole model over its baseline, a row for each schedule and backend, with its 95% interval."""
    rows = [r for r in records if r.case.level == "model" and r.derived and r.derived.ratio is not None]
    if not rows:
        return None
    found: dict[str, list[Point]] = {}
    for row, record in enumerate(rows):
        assert record.derived is not None
        assert record.derived.ratio is not None
        verdict = record.derived.verdict.value.lower() if record.derived.verdict else "too few rounds"
        value = 1 / record.derived.ratio
        note = f"{words.times(value)} {verdict}"
        point = Point(record, value, row, x_bar=speedup_interval(record), note=note)
        found.setdefault(record.case.backend, []).append(point)
    bases = dict.fromkeys(r.timing.baseline.name for r in rows if r.timing and r.timing.baseline)
    return Figure(
        "speedup",
        "speedup",
        "Whole model: speed-up",
        f"Times faster than {' or '.join(bases)} in the same rounds, with the 95% interval. {model_text(rows[0])}.",
        f"times as fast as {' or '.join(bases)}",
        "",
        tuple(Series(name, tuple(points)) for name, points in found.items()),
        words.times,
        lambda row: step_text(rows[round(row)]),
        floor=((1.0, -0.5), (1.0, len(rows) - 0.5)),
        floor_name=f"as fast as {' or '.join(bases)}",
        setting=f"{model_text(rows[0])}, {rows[0].case.threads} threads",
        y_log=False,
        measured="x",
    )


def stages_figure(records: Sequence[Record]) -> Figure | None:
    """Where the time of a model's instrumented run goes: a row for each record, a series for each group of stages."""
    chosen = [record for record in records if record.stages_s]
    if not chosen:
        return None
    found: dict[str, list[Point]] = {}
    for row, record in enumerate(chosen):
        total = sum((record.stages_s or {}).values())
        for group, stages in stage_groups(record):
            points = found.setdefault(group, [])
            for stage, seconds in stages:
                points.append(Point(record, seconds, row, part=stage, note=f"{seconds / total:.0%}"))

    def name(row: float) -> str:
        record = chosen[round(row)]
        total = sum((record.stages_s or {}).values())
        return f"{contender_text(record)} {step_text(record)}, {words.seconds(total)}"

    return Figure(
        "stages",
        "stages",
        "Where the model's time goes",
        "Each bar is one instrumented run, with its groups of stages above and its stages below. The thin line shows "
        f"its length beside the longest one. {model_text(chosen[0])}.",
        "time",
        "",
        tuple(Series(group, tuple(points)) for group, points in found.items()),
        words.seconds,
        name,
        setting=model_text(chosen[0]),
        measured="x",
    )
