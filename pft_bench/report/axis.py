"""Axes: their ends, round values on them, and pixels for the small pictures in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .canvas import even_steps


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


def steps(low: float, high: float, most: int, *, log: bool = True, binary: bool = False) -> list[float]:
    """Round values in low..high, at most about `most`.

    On a logarithmic axis powers of ten, with 1, 2, 5 and more between where few fit, or (`binary`, for bytes) every,
    every second, every fourth power of two; on a linear one equal steps, of MiB where `binary`.
    """
    if not log:
        unit = 2.0**20 if binary else 1.0
        return [value * unit for value in even_steps(low / unit, high / unit, most)]
    if binary:
        first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / most))
        return [2.0**power for power in range(first, last + 1) if power % step == 0] or [2.0**first]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for fractions in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        fine = [f * 10.0**d for d in decades for f in fractions if low <= f * 10.0**d <= high]
        if len(fine) > most:
            break
        found = fine
    return found or [math.sqrt(low * high)]


def limits(values: Iterable[float], *, log: bool) -> tuple[float, float]:
    """An axis with room around the smallest and the largest value; a logarithmic one spans a factor of 1.5 or more."""
    values = list(values)
    low, high = min(values), max(values)
    if log:
        if high / low < 1.5:
            low, high = low / 1.25, high * 1.25
        room = (high / low) ** 0.06
        return low / room, high * room
    room = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
