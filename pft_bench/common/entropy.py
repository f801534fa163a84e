"""Draws that no kernel can foresee: from the operating system, whatever torch, numpy or `random` were seeded with.

Functions and no objects, so that one that is replaced is seen (`process.Functions`).
"""

from __future__ import annotations

from os import urandom

import numpy as np


def below(count: int) -> int:
    """A whole number from 0 to `count` - 1; the bias of the modulo is less than 2^-32 for any count used here."""
    return int.from_bytes(urandom(8), "little") % count


def between(low: float, high: float) -> float:
    """A number between the two."""
    return low + (high - low) * int.from_bytes(urandom(6), "little") / float(1 << 48)


def chance(probability: float) -> bool:
    """True so often."""
    return between(0.0, 1.0) < probability


def some(count: int, most: int) -> list[int]:
    """Distinct numbers below `count`, ascending: all if there are at most `most`, else `most` draws, or a few less."""
    if count <= most:
        return list(range(count))
    return sorted({int(value) for value in np.frombuffer(urandom(8 * most), np.uint64) % np.uint64(count)})
