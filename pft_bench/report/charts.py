"""Each figure of the report as SVG. Every point is a link to its raw samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

from ..harness.record import Record
from .series import Figure, Point, Series, pareto_front
from .svg import Frame, Scale, look, mark, spread_out, tag, text_width, ticks
from .tables import step_text
from .words import tick

WIDE, NARROW = (560.0, 350.0), (350.0, 310.0)
"""Sizes for a desk and for a phone: the page shows the one that fits, so that texts keep their size."""

Href = Callable[[Record], str]


def draw(figure: Figure, size: tuple[float, float], names: Sequence[str], href: Href) -> Markup:
    """The figure as one <svg>; `names` are all backends of the report, so that each keeps its look."""
    names = list(
        dict.fromkeys([*names, *(series.name for series in figure.series)])
    )  # or of works, not backends
    drawn = {"curves": _curves, "roofline": _roofline, "pareto": _pareto}[figure.kind](
        figure, size, names, href
    )
    return tag(
        "svg",
        *drawn,
        class_="chart",
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="group",
        aria_label=f"{figure.title}. {figure.caption}",
    )


def _frame(
    figure: Figure, size: tuple[float, float], x: Sequence[float], y: Sequence[float], right: float
) -> Frame:
    width, height = size
    labels = [tick(figure.y_text(v)) for v in ticks(min(y), max(y), 6, figure.y_base)]
    left = 14 + max(text_width(label, 12.0) for label in labels)
    return Frame(
        width,
        height,
        Scale.over(x, left, width - right),
        Scale.over(y, height - 44, 40 if figure.roof else 26),
    )


def _y_ticks(figure: Figure, frame: Frame) -> list[float]:
    return ticks(frame.y.low, frame.y.high, 6, figure.y_base)


def _linked(point: Point, kind: int, figure: Figure, frame: Frame, href: Href) -> Markup:
    """A point: its bar from quartile to quartile, its mark, its words; a link to its samples."""
    x, y = frame.x(point.x), frame.y(point.y)
    inside = []
    spread = ""
    if point.low is not None and point.high is not None:
        spread = f" ({figure.y_text(point.low)} to {figure.y_text(point.high)})"
        inside.append(tag("line", class_="bar", x1=x, x2=x, y1=frame.y(point.low), y2=frame.y(point.high)))
    inside.append(mark(kind, x, y))
    words = f"{point.label}: {figure.y_text(point.y)}{spread}"
    if figure.x_title != "kept entries K":
        words += f", {figure.x_title} {figure.x_text(point.x)}"
    return tag(
        "a",
        tag("title", escape(words)),
        tag("circle", class_="hit", cx=x, cy=y, r=11.0),
        *inside,
        href=href(point.record),
        class_=f"point look{kind}{' hollow' if point.hollow else ''}",
        data_case=point.record.case_id,
        data_x=repr(float(point.x)),
        data_y=repr(float(point.y)),
        aria_label=words,
    )


def _line(points: Iterable[tuple[float, float]], frame: Frame, class_: str) -> Markup:
    path = "".join(f"{'L' if i else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y) in enumerate(points))
    return tag("path", class_=class_, d=path)


def _end_labels(
    parts: Sequence[tuple[str, str, Point]], frame: Frame, extra: tuple[str, float] | None
) -> list[Markup]:
    """The name of each series beside its last point, pushed apart where they would meet."""
    wanted = [frame.y(point.y) for _, _, point in parts]
    if extra is not None:
        wanted.append(frame.y(extra[1]))
    places = spread_out(wanted, 15.0, frame.y.end + 4, frame.y.start - 2)
    drawn = []
    for (name, class_, _), at in zip(parts, places, strict=False):
        drawn.append(tag("text", escape(name), class_=f"name {class_}", x=frame.x.end + 10, y=at + 4.2))
    if extra is not None:
        drawn.append(
            tag("text", escape(extra[0]), class_="name note", x=frame.x.end + 10, y=places[-1] + 4.2)
        )
    return drawn


def _last(series: Series) -> Point:
    steady = [point for point in series.points if not point.hollow]
    return max(steady or series.points, key=lambda point: point.x)


def _curves(figure: Figure, size: tuple[float, float], names: Sequence[str], href: Href) -> list[Markup]:
    """A curve against K for each backend, or against threads for each work."""
    points = figure.points
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    values += [y for _, y in figure.floor]
    longest = max(text_width(series.name, 14.0) for series in figure.series)
    if figure.floor:
        longest = max(longest, text_width(figure.floor_name, 13.0))
    frame = _frame(figure, size, [p.x for p in points], values, longest + 16)
    kept = sorted({p.x for p in points})
    drawn = frame.axes(
        kept, _y_ticks(figure, frame), figure.x_text, figure.y_text, figure.x_title, figure.y_title
    )
    if figure.floor:
        drawn.append(_line(figure.floor, frame, "floor"))
    labels = []
    for series in figure.series:
        kind = look(series.name, names)
        steady = [(p.x, p.y) for p in series.points if not p.hollow]
        drawn.append(_line(steady, frame, f"curve look{kind}") if len(steady) > 1 else Markup(""))
        labels.append((series.name, f"look{kind}", _last(series)))
    for series in figure.series:
        kind = look(series.name, names)
        drawn += [_linked(point, kind, figure, frame, href) for point in series.points]
    return drawn + _end_labels(
        labels, frame, (figure.floor_name, figure.floor[-1][1]) if figure.floor else None
    )


def _roofline(figure: Figure, size: tuple[float, float], names: Sequence[str], href: Href) -> list[Markup]:
    """Points under the measured roofs; each intensity is named by its step."""
    roof = figure.roof
    assert roof is not None
    points = figure.points
    ridge = roof.flops_per_s / roof.bytes_per_s
    xs = [*(p.x for p in points), ridge / 2, ridge * 2]
    longest = max(text_width(series.name, 14.0) for series in figure.series)
    low = min(xs)
    ys = [*(p.y for p in points), roof.flops_per_s, min(roof.flops_per_s, low * roof.bytes_per_s)]
    frame = _frame(figure, size, xs, ys, longest + 16)
    drawn = frame.axes(
        ticks(frame.x.low, frame.x.high, 6),
        _y_ticks(figure, frame),
        figure.x_text,
        figure.y_text,
        figure.x_title,
        figure.y_title,
    )
    start = max(frame.x.low, frame.y.low / roof.bytes_per_s)
    drawn.append(
        _line(
            [(start, start * roof.bytes_per_s), (ridge, roof.flops_per_s), (frame.x.high, roof.flops_per_s)],
            frame,
            "floor",
        )
    )
    free = -1e9
    for at in sorted({p.x for p in points}):
        words = _short_step(next(p.record for p in points if p.x == at))
        x, half = frame.x(at), text_width(words, 11.0) / 2
        drawn.append(tag("line", class_="guide", x1=x, x2=x, y1=frame.y.end, y2=frame.y.start))
        if x - half > free:
            drawn.append(tag("text", escape(words), class_="tick middle", x=x, y=frame.y.end - 6))
            free = x + half + 3
    labels = []
    for series in figure.series:
        kind = look(series.name, names)
        drawn += [_linked(point, kind, figure, frame, href) for point in series.points]
        labels.append((series.name, f"look{kind}", max(series.points, key=lambda p: p.x)))
    return drawn + _end_labels(labels, frame, None)


def _short_step(record: Record) -> str:
    case = record.case
    return f"K {case.k}" if case.level == "op" else f"{case.shapes['candidates']}→{case.k}"


def _pareto(figure: Figure, size: tuple[float, float], names: Sequence[str], href: Href) -> list[Markup]:
    """Time against memory, each point named, the front joined by steps."""
    points = figure.points
    frame = _frame(figure, size, [p.x for p in points], [p.y for p in points], 24)
    drawn = frame.axes(
        ticks(frame.x.low, frame.x.high, 5),
        _y_ticks(figure, frame),
        figure.x_text,
        figure.y_text,
        figure.x_title,
        figure.y_title,
    )
    front = pareto_front(points)
    steps: list[tuple[float, float]] = []
    for point in front:
        if steps:
            steps.append((point.x, steps[-1][1]))
        steps.append((point.x, point.y))
    if len(front) > 1:
        drawn.append(_line(steps, frame, "front"))
    placed: list[tuple[float, float]] = []
    for series in figure.series:
        kind = look(series.name, names)
        for point in series.points:
            drawn.append(_linked(point, kind, figure, frame, href))
            drawn.append(_name_beside(point, kind, frame, placed))
    return drawn


def _name_beside(point: Point, kind: int, frame: Frame, placed: list[tuple[float, float]]) -> Markup:
    """`backend schedule` to the right of a point, or to its left where the edge is near; never on another."""
    words = f"{point.record.case.backend} {step_text(point.record)}"
    words += "" if point.quality_db is None else f", {point.quality_db:.2f} dB"
    x, y = frame.x(point.x), frame.y(point.y)
    right = x + 12 + text_width(words, 14.0) < frame.width
    y = max(y, frame.y.end + 8)
    while any(abs(y - other) < 14 and abs(x - at) < 190 for at, other in placed):
        y += 14
    placed.append((x, y))
    return tag(
        "text",
        escape(words),
        class_=f"name look{kind}" + ("" if right else " end"),
        x=x + (10 if right else -10),
        y=y + 4.2,
    )


def interval_cell(record: Record, scale: Scale, kind: int) -> Markup:
    """Speed-up and its interval as a dot on a line through 1x, in the scale of its table."""
    derived = record.derived
    one = scale(1.0)
    drawn = [tag("line", class_="one", x1=one, x2=one, y1=1, y2=19)]
    if derived is not None and derived.ratio is not None:
        if derived.ratio_low is not None and derived.ratio_high is not None:
            ends = scale(1 / derived.ratio_high), scale(1 / derived.ratio_low)
            drawn.append(tag("line", class_="bar", x1=ends[0], x2=ends[1], y1=10, y2=10))
        drawn.append(mark(kind, scale(1 / derived.ratio), 10, 3.6))
    return tag(
        "svg",
        *drawn,
        class_=f"interval look{kind}",
        viewBox="0 0 150 20",
        width=150,
        height=20,
        aria_hidden="true",
    )


def interval_scale(records: Iterable[Record]) -> Scale:
    """The common scale of a table's speed-ups, 1x always on it."""
    values = [1.0]
    for record in records:
        derived = record.derived
        if derived is not None and derived.ratio is not None:
            values += [1 / (derived.ratio_high or derived.ratio), 1 / (derived.ratio_low or derived.ratio)]
    return Scale.over(values, 4, 146)


def rounds_strip(record: Record) -> Markup:
    """The samples of every round, this case's as dots and the baseline's as rings: drift and outliers at a glance."""
    timing = record.timing
    assert timing is not None
    width, height = 600.0, 96.0
    base = timing.baseline.samples_s if timing.baseline is not None else timing.control_s
    values = [*timing.samples_s, *base]
    scale = Scale.over(values, height - 6, 6)
    last = max(len(timing.rounds) - 1, 1)

    def path(samples: Sequence[float]) -> str:
        return "".join(
            f"M{8 + i * (width - 16) / last:.1f} {scale(value):.1f}h0" for i, value in enumerate(samples)
        )

    return tag(
        "svg",
        tag("path", class_="dots control", d=path(base)),
        tag("path", class_="dots", d=path(timing.samples_s)),
        class_="strip",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label="Samples in the order of the rounds, logarithmic scale",
    )
