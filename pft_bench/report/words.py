"""Numbers as a page shows them: three digits, trailing zeros kept, so that columns line up."""

from __future__ import annotations

import math
import re


def digits(value: float) -> str:
    """Three significant digits, never in exponent form: 3.10, 93.7, 337, 1,260."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def whole(value: float) -> str:
    """A count that is small enough to be written out."""
    return f"{value:g}"


def seconds(value: float) -> str:
    """A duration in s, ms or µs."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if float(f"{value * factor:.3g}") >= 1:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µs"


def size(count: float) -> str:
    """Bytes in KiB, MiB or GiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{digits(count / 1024)} KiB"


def amount(count: float, unit: str = "") -> str:
    """A count with its metric prefix."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{digits(count / factor)} {prefix}{unit}"
    return f"{digits(count)} {unit}".rstrip()


def rate(per_second: float) -> str:
    """Operations a second."""
    return amount(per_second, "FLOP/s")


def times(value: float) -> str:
    """A factor."""
    return f"{digits(value)}×"


def tick(text: str) -> str:
    """A number of an axis: without the zeros that only columns need ("1.00 ms" is "1 ms")."""
    return re.sub(r"\.(?!\d)", "", re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text))
