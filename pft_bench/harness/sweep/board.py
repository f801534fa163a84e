"""What a worker is doing, in memory that it shares with its supervisor.

Written without a system call and read when the supervisor likes, so that the timing under way feels nothing of it; and
still there after the worker has died.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

CELLS = ("turn", "contender", "phase", "rounds", "planned")
PHASES = ("set-up", "check", "warm-up", "timing", "memory, FLOPs and stages")


class Sight(NamedTuple):
    """One look at the board. `turn` counts up; `contender` is a position, or -1 for the set-up of all."""

    turn: int
    contender: int
    doing: str
    rounds: int
    planned: int


class Board:
    """The shared cells; supervisor and worker each map the same file."""

    def __init__(self, descriptor: int) -> None:
        self._cells = memoryview(mmap.mmap(descriptor, 8 * len(CELLS))).cast("q")

    @staticmethod
    def make() -> int:
        """A descriptor of a file that lives in memory alone; pass it on to the other process."""
        descriptor = os.memfd_create("pft_bench-board", 0)
        os.ftruncate(descriptor, 8 * len(CELLS))
        return descriptor

    def clear(self) -> None:
        """Before a worker starts: nobody's turn."""
        for cell, value in enumerate((0, -1, 0, 0, 0)):
            self._cells[cell] = value

    def turn(self, contender: int, doing: str) -> None:
        """The worker goes on to this contender and phase."""
        self._cells[1] = contender
        self._cells[2] = PHASES.index(doing)
        self._cells[0] += 1

    def progress(self, rounds: int, planned: int) -> None:
        """The worker has finished so many rounds."""
        self._cells[3], self._cells[4] = rounds, planned

    def look(self) -> Sight:
        """What it says now."""
        turn, contender, phase, rounds, planned = self._cells
        return Sight(turn, contender, PHASES[phase], rounds, planned)
