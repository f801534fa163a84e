"""Stages as bars: for each record its groups of stages, below them the stages, each a link that tells its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .canvas import palette, text_width
from .series import Figure

if TYPE_CHECKING:
    from .canvas import Axes, Canvas

ROW, BAR, THIN = 88.0, 25.0, 4.0
"""Heights in pixels: of a record's title and bars, of a bar, and of the line that is as long as the record's time."""


def draw_bars(canvas: Canvas, figure: Figure, width: float, top: float) -> float:
    """Draw a figure of stages, `top` pixels below the sheet's edge; returns the sheet's height."""
    rows = sorted({point.y for point in figure.points})
    height = top + ROW * len(rows)
    canvas.set_size_inches(width / 72, height / 72)
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    totals = {row: sum(point.x for point in figure.points if point.y == row) for row in rows}
    for place, row in enumerate(rows):
        at = top + place * ROW
        axes.text(0, at + 15, figure.y_text(row), size=12.5, weight="bold")
        length = width * totals[row] / max(totals.values())
        axes.broken_barh([(0, length)], (at + 21, THIN), color=palette()["soft"], lw=0)
    starts = dict.fromkeys(rows, 0.0)
    number = 0
    for place, series in enumerate(figure.series):
        fill: dict[str, Any] = {"color": palette()[f"g{place % 5}"], "edgecolor": palette()["paper"], "lw": 1}
        for row in dict.fromkeys(point.y for point in series.points):
            points = [point for point in series.points if point.y == row]
            seconds, scale = sum(point.x for point in points), width / totals[row]
            y = top + rows.index(row) * ROW + 28
            texts = [f"{series.name} {seconds / totals[row]:.0%}", series.name]
            _block(axes, starts[row] * scale, y, seconds * scale, texts, "bold", **fill)
            for point in points:
                texts = [f"{point.part} {point.note}", point.part]
                _block(
                    axes,
                    starts[row] * scale,
                    y + BAR + 1,
                    point.x * scale,
                    texts,
                    alpha=0.72,
                    url=f"#{number}",
                    **fill,
                )
                starts[row] += point.x
                number += 1
    return height


def _block(
    axes: Axes, x: float, y: float, length: float, texts: list[str], weight: str = "normal", **drawn: Any
) -> None:
    """A block with the longest of its texts that fits, if any does."""
    axes.barh(y + BAR / 2, length, BAR, x, **drawn)
    for text in texts:
        if text_width(text, 11.5, weight) + 8 < length:
            axes.text(x + 5, y + BAR / 2 + 4, text, size=11.5, weight=weight)
            return
