"""How a backend looks everywhere, and the small pictures in tables: marks, intervals, strips of rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from markupsafe import Markup

from ..harness.record import Record
from .axis import Scale, limits
from .canvas import outline

LOOKS = ("dense", "cpu", "cuda", "triton", "reference", "official")
"""Backends with a fixed look, 0 to 5; others take the next ones in turn."""

MARKS = "so^DvPXph*"
"""Of each look its mark, by matplotlib's names, and its dash; its colour is `--c0`, `--c1`, ... of the style sheet."""

MARK_SIZES = (8, 9, 9.5, 8, 9.5, 10, 10, 10, 10, 13)

DASHES = ("--", "-", "-", "-.", ":", (0, (8, 3)), (0, (5, 2, 1, 2)), (0, (3, 3)), (0, (1, 3)), (0, (10, 1)))


def look(name: str, names: Sequence[str]) -> int:
    """Number of the look of `name` among all `names` of a report."""
    if name in LOOKS:
        return LOOKS.index(name)
    others = list(dict.fromkeys(other for other in names if other not in LOOKS))
    free = [*range(len(LOOKS), len(MARKS)), *(i for i, known in enumerate(LOOKS) if known not in names)]
    return free[others.index(name) % len(free)]


@cache
def _corners(kind: int) -> tuple[tuple[float, float], ...]:
    return tuple(outline(MARKS[kind], MARK_SIZES[kind]))


def _mark(kind: int, x: float, y: float) -> Markup:
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _corners(kind))
    return Markup('<polygon points="{}"/>').format(points)


def swatch(kind: int) -> Markup:
    """The mark of a look as it stands in the figures, for tables."""
    return Markup(
        '<svg class="swatch look{}" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{}</svg>'
    ).format(kind, _mark(kind, 7, 7))


def interval_scale(records: Iterable[Record]) -> Scale:
    """The common scale of a table's speed-ups, 1x always on it."""
    values = [1.0]
    for record in records:
        derived = record.derived
        if derived is not None and derived.ratio is not None:
            values += [1 / (derived.ratio_high or derived.ratio), 1 / (derived.ratio_low or derived.ratio)]
    return Scale(*limits(values, log=True), 4, 146)


def interval_cell(record: Record, scale: Scale, kind: int) -> Markup:
    """Speed-up and its interval as a dot on a line through 1x, in the scale of its table."""
    derived = record.derived
    drawn = Markup('<path class="one" d="M{:.1f} 1v18"/>').format(scale(1.0))
    if derived is not None and derived.ratio is not None:
        if derived.ratio_low is not None and derived.ratio_high is not None:
            ends = scale(1 / derived.ratio_high), scale(1 / derived.ratio_low)
            drawn += Markup('<path class="bar" d="M{:.1f} 10H{:.1f}"/>').format(*ends)
        drawn += _mark(kind, scale(1 / derived.ratio), 10)
    return Markup(
        '<svg class="interval look{}" viewBox="0 0 150 20" width="150" height="20" aria-hidden="true">{}</svg>'
    ).format(kind, drawn)


def rounds_strip(record: Record) -> Markup:
    """The samples of every round, this case's as dots and the baseline's as rings: drift and outliers at a glance."""
    timing = record.timing
    assert timing is not None
    width, height = 600.0, 96.0
    base = timing.baseline.samples_s if timing.baseline is not None else timing.control_s
    scale = Scale(*limits([*timing.samples_s, *base], log=True), height - 6, 6)
    last = max(len(timing.rounds) - 1, 1)

    def path(samples: Sequence[float]) -> str:
        places = ((8 + i * (width - 16) / last, scale(value)) for i, value in enumerate(samples))
        return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)

    return Markup(
        '<svg class="strip" viewBox="0 0 {:g} {:g}" role="img" '
        'aria-label="Samples in the order of the rounds, logarithmic scale">'
        '<path class="dots control" d="{}"/><path class="dots" d="{}"/></svg>'
    ).format(width, height, path(base), path(timing.samples_s))
