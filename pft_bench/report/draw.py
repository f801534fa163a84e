"""Draws a figure of the report: axes, series, notes, and a link at every point; once for its page and its files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ..harness.record import Record, RunFolder
from .bars import draw_bars
from .canvas import Attributes, blank, markup, palette, save, style, text_width, vectors
from .chart import Chart
from .figures import figures
from .series import Figure, Point

if TYPE_CHECKING:
    from .canvas import Canvas

WIDE, NARROW = 560, 350
"""Widths in pixels, for a desk and for a phone: the page shows the one that fits, so that texts keep their size."""

STAGES = 1000
"""Width of stages for a desk, where short ones have to hold their names."""

HEAD = "head"
"""The title in files; the page has a heading instead."""

Href = Callable[[Record], str]


@dataclass(frozen=True)
class Drawing:
    """A figure on its sheet of `width` and `height` pixels, whose title takes the upper `head`."""

    figure: Figure
    canvas: Canvas
    width: float
    height: float
    head: float

    @cached_property
    def _vectors(self) -> str:
        return vectors(self.canvas, f"{self.figure.key} {self.width}")

    def svg(self, href: Href, *, titled: bool = True, **root: str) -> Markup:
        """As markup, a link to the raw samples at every point; a page has the title beside it."""
        links = [_link(self.figure, point, href) for point in self.figure.points]
        top = 0.0 if titled else self.head
        known = {
            "viewBox": f"0 {top:g} {self.width:g} {self.height - top:g}",
            "role": "group",
            "class": "chart",
            "aria-label": f"{self.figure.title}. {self.figure.caption}",
        }
        return markup(self._vectors, links, () if titled else (HEAD,), **known, **root)

    def png(self, folder: Path) -> Path:
        """Write its pixels."""
        return save(self.canvas, folder / f"{self.figure.key}.png")


@dataclass(frozen=True)
class DrawnFigure:
    """A figure in both widths, each drawn when it is first asked for; `names` are all backends of the report."""

    figure: Figure
    names: Sequence[str]

    @cached_property
    def wide(self) -> Drawing:
        """For a desk, and for files."""
        return draw(self.figure, self.names, STAGES if self.figure.kind == "stages" else WIDE)

    @cached_property
    def narrow(self) -> Drawing:
        """For a phone."""
        return draw(self.figure, self.names, NARROW)


def pictures(folder: RunFolder) -> list[DrawnFigure]:
    """Every figure that a run folder allows, in the order of the page."""
    return [
        DrawnFigure(figure, folder.backends)
        for figure in figures(folder.records, folder.roof, folder.quality_db)
    ]


def _link(figure: Figure, point: Point, href: Href) -> Attributes:
    return {
        "class": "point",
        "href": href(point.record),
        "data-case": point.record.case_id,
        **({"data-part": point.part} if point.part else {}),
        "data-x": repr(float(point.x)),
        "data-y": repr(float(point.y)),
        "aria-label": figure.words(point),
    }


def draw(figure: Figure, names: Sequence[str], width: float = WIDE) -> Drawing:
    """Draw a figure; `names` are all backends of the report, so that each keeps its look."""
    known = list(dict.fromkeys([*names, *(part.name for part in figure.series)]))  # or of works, not backends
    with style():
        canvas = blank(width, width)
        head = _head(figure, width)
        top = sum(1.35 * size for _, size, _, _ in head) + 10
        if figure.kind == "stages":
            height = draw_bars(canvas, figure, width, top)
        else:
            height = Chart(canvas, canvas.add_subplot(), figure, known, width).draw(top)
        at = 0.0
        for text, size, weight, colour in head:
            at += 1.35 * size
            place = 2 / width, 1 - at / height
            canvas.text(*place, text, size=size, weight=weight, color=palette()[colour], gid=HEAD)
    return Drawing(figure, canvas, width, height, top - 5)


def _head(figure: Figure, width: float) -> list[tuple[str, float, str, str]]:
    """Title and setting as lines that fit: (text, size, weight, colour)."""
    letters = int(width / text_width("nonsense: n", 11) * 11)
    lines = textwrap.wrap(figure.setting, letters)
    return [(figure.title, 14, "bold", "ink"), *((line, 11, "normal", "soft") for line in lines)]
