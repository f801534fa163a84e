"""Figures as SVG: axes, marks and direct labels. Colours come from the page's style sheet by class name.

Every backend has its own mark and dash besides its colour, and its name stands at the end of its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .words import tick

LOOKS = ("dense", "cpu", "cuda", "triton", "reference", "official")
"""Backends with a fixed look, 0 to 5; others take the next ones in turn."""

OTHER_LOOKS = 4
CHAR = 0.56
"""Width of an average character in units of its size; labels are placed by it."""


def look(name: str, names: Sequence[str]) -> int:
    """Number of the look of `name` (a class `look0`, `look1`, ... of the style sheet)."""
    if name in LOOKS:
        return LOOKS.index(name)
    others = [other for other in names if other not in LOOKS]
    return len(LOOKS) + others.index(name) % OTHER_LOOKS


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element; `class_` and `stroke_width` become `class` and `stroke-width`, numbers get two digits."""
    written = []
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            written.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    content = Markup("").join(inside)
    body = "".join(written)
    return Markup(f"<{name}{body}>{content}</{name}>") if inside else Markup(f"<{name}{body}/>")


def mark(kind: int, x: float, y: float, size: float = 4.5) -> Markup:
    """The mark of look `kind` around (x, y): square, circle, triangle, diamond, inverted triangle, ..."""
    s = size
    polygons = {
        2: [(0, -1.2 * s), (1.1 * s, 0.9 * s), (-1.1 * s, 0.9 * s)],
        3: [(0, -1.35 * s), (1.35 * s, 0), (0, 1.35 * s), (-1.35 * s, 0)],
        4: [(0, 1.2 * s), (1.1 * s, -0.9 * s), (-1.1 * s, -0.9 * s)],
        6: [(s * math.sin(a * math.tau / 5) * 1.2, -s * math.cos(a * math.tau / 5) * 1.2) for a in range(5)],
        8: [(s * math.sin(a * math.tau / 6) * 1.2, -s * math.cos(a * math.tau / 6) * 1.2) for a in range(6)],
    }
    if kind == 0:
        return tag("rect", class_="mark", x=x - 0.9 * s, y=y - 0.9 * s, width=1.8 * s, height=1.8 * s)
    if kind in polygons:
        corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in polygons[kind])
        return tag("polygon", class_="mark", points=corners)
    if kind == 9:
        ring = f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0"
        return tag("path", class_="mark stroke", d=ring)
    if kind in (5, 7):  # plus, cross
        r = s * (1.2 if kind == 5 else 0.9)
        ways = ((r, 0), (0, r)) if kind == 5 else ((r, r), (r, -r))
        path = "".join(f"M{x - dx:.1f} {y - dy:.1f}L{x + dx:.1f} {y + dy:.1f}" for dx, dy in ways)
        return tag("path", class_="mark stroke", d=path)
    return tag("circle", class_="mark", cx=x, cy=y, r=s)


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, margin: float = 0.06) -> Scale:
        """An axis with room around the smallest and the largest value; at least a factor of 1.5 wide."""
        low, high = min(values), max(values)
        if high / low < 1.5:
            low, high = low / 1.25, high * 1.25
        room = (high / low) ** margin
        return cls(low / room, high * room, start, end)


def ticks(low: float, high: float, most: int, base: int = 10) -> list[float]:
    """Round values in low..high, at most about `most`: powers of `base`, with steps between where few fit.

    Base 10 divides into 1, 2, 5; base 2 (bytes) takes every, every second, every fourth power.
    """
    if base == 2:
        first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / most))
        return [2.0**power for power in range(first, last + 1) if power % step == 0] or [2.0**first]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        fine = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(fine) > most:
            break
        found = fine
    return found or [math.sqrt(low * high)]


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near to `wanted` as `gap` between neighbours allows, inside low..high where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    at = low - gap
    for i in order:
        at = placed[i] = max(wanted[i], at + gap)
    limit = high + gap
    for i in reversed(order):
        limit = placed[i] = min(placed[i], limit - gap)
    return placed


def text_width(text: str, size: float) -> float:
    """About how wide a text is."""
    return len(text) * size * CHAR


@dataclass(frozen=True)
class Frame:
    """The plot area of a figure and its two axes."""

    width: float
    height: float
    x: Scale
    y: Scale

    @property
    def font(self) -> float:
        """Size of its texts; the style sheet sets the same."""
        return 12.0

    def axes(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
        x_title: str,
        y_title: str,
    ) -> list[Markup]:
        """Grid lines, tick labels (those that fit) and titles; the vertical one stands level, above its axis."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        drawn = []
        for value in y_ticks:
            at = self.y(value)
            drawn.append(tag("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
            drawn.append(
                tag(
                    "text",
                    escape(tick(y_text(value))),
                    class_="tick end",
                    x=left - 8,
                    y=at + 0.35 * self.font,
                )
            )
        free = -math.inf
        for value in x_ticks:
            at, text = self.x(value), tick(x_text(value))
            drawn.append(tag("line", class_="grid", x1=at, x2=at, y1=top, y2=bottom))
            half = text_width(text, self.font) / 2
            if at - half > free:
                drawn.append(
                    tag("text", escape(text), class_="tick middle", x=at, y=bottom + 1.5 * self.font)
                )
                free = at + half + 4
        drawn.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
        drawn.append(tag("text", escape(y_title), class_="axis-title", x=2.0, y=self.font))
        drawn.append(tag("text", escape(x_title), class_="axis-title end", x=right, y=bottom + 3 * self.font))
        return drawn
