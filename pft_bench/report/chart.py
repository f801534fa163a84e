"""Charts: series on two axes with their bars, what is possible, a legend, and words beside points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..harness.record import Record
from .axis import limits, steps
from .canvas import FONT, palette, text_width
from .marks import DASHES, MARK_SIZES, MARKS, look
from .series import Figure, Point, Series, pareto_front
from .words import size, tick

if TYPE_CHECKING:
    from .canvas import Axes, Canvas

HIT = 11.0
"""Pixels around a point that are its link."""

SMALL = 450
"""Sheets of fewer pixels are a phone's: lower, with fewer ticks."""

_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a note may stand from its point, the best first: right, left, above, ..."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels from the lower left corner."""


@dataclass
class Chart:
    """A figure whose points stand on two axes, on a sheet of `width` pixels."""

    canvas: Canvas
    axes: Axes
    figure: Figure
    names: Sequence[str]
    width: float

    def draw(self, top: float) -> float:
        """Draw it, `top` pixels below the sheet's edge; returns the height of the sheet."""
        self._limit()
        for series in self.figure.series:
            self._series(series)
        if any(point.hollow for point in self.figure.points):
            self.axes.plot(
                [],
                [],
                **_mark(1, hollow=True) | {"mec": palette()["ink"]},
                ls="none",
                label=f"hollow: {self.figure.hollow}",
            )
        for told in self.figure.absent:
            self.axes.plot([], [], ls="none", label=told)
        self._reference()
        height = self._place(top)
        self._ticks()
        self._links()
        self._notes()
        return height

    def _limit(self) -> None:
        figure, points = self.figure, self.figure.points
        xs = [value for point in points for value in (point.x, *(point.x_bar or ()))]
        ys = [value for point in points for value in (point.y, *(point.y_bar or ()))]
        xs += [x for x, _ in figure.floor]
        ys += [y for _, y in figure.floor]
        if figure.roof is not None:
            ridge, low = figure.roof.flops_per_s / figure.roof.bytes_per_s, min(xs)
            xs += [ridge / 2, ridge * 2]
            ys += [figure.roof.flops_per_s, min(figure.roof.flops_per_s, low * figure.roof.bytes_per_s)]
        self.axes.set_xscale("log" if figure.x_log else "linear")
        self.axes.set_yscale("log" if figure.y_log else "linear")
        self.axes.set_xlim(limits(xs, log=figure.x_log))
        low, high = limits(ys, log=figure.y_log)
        self.axes.set_ylim((max(ys), min(ys)) if figure.kind == "speedup" else (low, high))

    def _series(self, series: Series) -> None:
        """Filled points, joined where the figure has curves, then hollow ones; under all the bars."""
        kind = look(series.name, self.names)
        colour = palette()[f"c{kind}"]
        up = [(point.x, *point.y_bar) for point in series.points if point.y_bar is not None]
        across = [(point.y, *point.x_bar) for point in series.points if point.x_bar is not None]
        for lines, bars in ((self.axes.vlines, up), (self.axes.hlines, across)):
            if bars:
                places, low, high = zip(*bars, strict=True)
                lines(places, low, high, colour, linewidth=2)
        dash = DASHES[kind] if self.figure.kind == "curves" else "none"
        for hollow in (False, True):
            points = [point for point in series.points if point.hollow is hollow]
            if points or not hollow:
                self.axes.plot(
                    [point.x for point in points],
                    [point.y for point in points],
                    **_mark(kind, hollow=hollow),
                    ls="none" if hollow else dash,
                    color=colour,
                    lw=2,
                    label="" if hollow else series.name,
                    zorder=3,
                )

    def _reference(self) -> None:
        """What is possible: a floor, the measured roofs, or the front of what nothing else beats."""
        figure, line = self.figure, list(self.figure.floor)
        drawn: dict[str, Any] = {"color": palette()["soft"], "ls": (0, (1, 2.5)), "label": figure.floor_name}
        if figure.roof is not None:
            flops, bandwidth = figure.roof.flops_per_s, figure.roof.bytes_per_s
            (low, high), bottom = self.axes.get_xlim(), self.axes.get_ylim()[0]
            start = max(low, bottom / bandwidth)
            line = [(start, start * bandwidth), (flops / bandwidth, flops), (high, flops)]
            for x in sorted({point.x for point in figure.points}):
                self.axes.axvline(x, color=palette()["line"], lw=0.8, ls=(0, (2, 3)), zorder=1)
        if figure.kind == "pareto":
            line = [(point.x, point.y) for point in pareto_front(figure.points)]
            drawn |= {
                "color": palette()["ink"],
                "ls": (0, (4, 3)),
                "label": "front",
                "drawstyle": "steps-post",
            }
        if len(line) > 1:
            self.axes.plot(*zip(*line, strict=True), lw=1.5, zorder=2, **drawn)

    # -- places, in pixels ---------------------------------------------------------------------------------------------

    def _place(self, top: float) -> float:
        """Legend, then the name of the vertical axis, then the axes, as far apart as their texts need."""
        figure, width = self.figure, self.width
        handles, labels = self.axes.get_legend_handles_labels()
        widest = max(text_width(label) for label in labels)
        legend = self.canvas.legend(
            handles, labels, loc="upper left", ncols=max(1, int((width + 16) // (widest + 54))), frameon=False,
            borderpad=0, borderaxespad=0, handlelength=2.6, columnspacing=1.3, labelspacing=0.35,
        )  # fmt: skip
        named = 16 if figure.roof else 0  # the row of what each intensity is
        above = top + legend.get_window_extent().height + (24 if figure.y_title else 6) + named
        rows = len({point.y for point in figure.points})
        inner = 30.0 * rows + 14 if figure.kind == "speedup" else 250.0 if width > SMALL else 215.0
        left = 14 + max(text_width(label) for _, label in self._y_ticks())
        height = above + inner + 46
        self.canvas.set_size_inches(width / 72, height / 72)
        self.axes.set_position((left / width, 46 / height, (width - left - 18) / width, inner / height))
        legend.set_bbox_to_anchor((2 / width, 1 - top / height), transform=self.canvas.transFigure)
        soft = palette()["soft"]
        self.canvas.text(2 / width, 1 - (above - named - 8) / height, figure.y_title, color=soft)
        self.canvas.text(1 - 18 / width, 8 / height, figure.x_title, color=soft, ha="right")
        return height

    def _x_ticks(self) -> list[tuple[float, str]]:
        figure = self.figure
        at = sorted({point.x for point in figure.points})
        if figure.kind != "curves":
            most, binary = 6 if self.width > SMALL else 4, figure.x_text is size
            at = steps(*self.axes.get_xlim(), most, log=figure.x_log, binary=binary)
        return [(value, tick(figure.x_text(value))) for value in at]

    def _y_ticks(self) -> list[tuple[float, str]]:
        figure = self.figure
        low, high = sorted(self.axes.get_ylim())
        if figure.kind == "speedup":
            return [(y, figure.y_text(y)) for y in sorted({point.y for point in figure.points})]
        at = steps(low, high, 6, log=figure.y_log, binary=figure.y_text is size)
        return [(value, tick(figure.y_text(value))) for value in at]

    def _ticks(self) -> None:
        """Grid lines at every tick, texts at those that have room."""
        x, y = self._x_ticks(), self._y_ticks()
        shown = dict(self._with_room(x, FONT))
        self.axes.set_xticks([value for value, _ in x], [shown.get(value, "") for value, _ in x])
        self.axes.set_yticks([value for value, _ in y], [text for _, text in y])
        self.axes.minorticks_off()
        if self.figure.roof is not None:
            named = {point.x: _short_step(point.record) for point in self.figure.points}
            for at, text in self._with_room(sorted(named.items()), 11):
                self.axes.text(
                    at, 1, text, size=11, ha="center", va="bottom", color=palette()["soft"],
                    transform=self.axes.get_xaxis_transform(),
                )  # fmt: skip

    def _with_room(self, texts: Sequence[tuple[float, str]], font: float) -> list[tuple[float, str]]:
        """Texts centred at places of the horizontal axis, without those that would meet the one before or the edge."""
        found, free = [], 0.0
        for x, text in texts:
            at, half = self.axes.transData.transform((x, 1))[0], text_width(text, font) / 2
            if at - half > free and at + half < self.width:
                found.append((x, text))
                free = at + half + 4
        return found

    def _links(self) -> None:
        """A disc that nobody sees around each point, with the number of the point as its address."""
        points = self.figure.points
        places = [point.x for point in points], [point.y for point in points]
        # Before 3.11 matplotlib draws no points without a colour.
        made = self.axes.scatter(*places, (2 * HIT) ** 2, c=[(0, 0, 0, 0)], lw=0, zorder=9, clip_on=False)
        # The last belongs to no point: a collection with a single address it draws without the address.
        made.set_urls([*(f"#{number}" for number in range(len(points))), None])

    def _notes(self) -> None:
        """The words of a point beside it, at the nearest place that is free; from afar a thin line leads back."""
        taken = [self._taken(point) for point in self.figure.points]
        for series in self.figure.series:
            for point in series.points:
                if point.note:
                    self._note(point, f"c{look(series.name, self.names)}", taken)

    def _taken(self, point: Point) -> Box:
        """What a point and its bars cover."""
        ends = [(point.x, point.y)]
        ends += [(point.x, y) for y in point.y_bar or ()]
        ends += [(x, point.y) for x in point.x_bar or ()]
        places = self.axes.transData.transform(ends)
        (left, bottom), (right, top) = places.min(axis=0) - 7, places.max(axis=0) + 7
        return float(left), float(bottom), float(right), float(top)

    def _note(self, point: Point, colour: str, taken: list[Box]) -> None:
        x, y = self.axes.transData.transform((point.x, point.y))
        length, tall = text_width(point.note, 11.5), 14.0
        frame = self.axes.get_window_extent()
        on_line = self.figure.kind == "curves"
        ways = _WAYS[2:] + _WAYS[:2] if on_line else _WAYS
        for away, (right, up) in itertools.product(range(0, 200, 14), ways):
            left = x + right * (12 + away) + (0 if right > 0 else -length if right < 0 else -length / 2)
            low = y - tall / 2 + up * (16 + away)
            box = left, low, left + length, low + tall
            inside = left > 0 and box[2] < self.width and low > frame.y0 and box[3] < frame.y1 + 8
            if inside and not any(_meet(box, other) for other in taken):
                break
        else:
            return  # no room at all: the link's title says it
        taken.append(box)
        leader = {"arrowstyle": "-", "color": palette()[colour], "lw": 0.8, "shrinkA": 0, "shrinkB": 5}
        self.axes.annotate(
            point.note, (point.x, point.y), (left - x, low - y + 3), textcoords="offset points", size=11.5,
            color=palette()[colour], arrowprops=leader if away else None, zorder=4, annotation_clip=False,
        )  # fmt: skip


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _mark(kind: int, *, hollow: bool) -> dict[str, Any]:
    colour, paper = palette()[f"c{kind}"], palette()["paper"]
    inside, edge, width = (paper, colour, 1.8) if hollow else (colour, paper, 0.8)
    return {"marker": MARKS[kind], "ms": MARK_SIZES[kind], "mfc": inside, "mec": edge, "mew": width}


def _short_step(record: Record) -> str:
    case = record.case
    return f"K {case.k}" if case.level == "op" else f"{case.shapes['candidates']}→{case.k}"
