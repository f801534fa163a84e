"""Outside evidence that a round was disturbed. It never looks at the samples."""

from __future__ import annotations

import time

import psutil

MIN_ROUND_S = 0.1
"""Processor accounting counts in ticks of 10 ms: a shorter round says nothing."""


class ForeignLoad:
    """A round is disturbed if other processes or the virtual machine's host used too much processor time.

    Args:
        max_fraction: of all processors' time during the round. Kept loose: on a busy shared machine a
            strict limit drops every round, and interleaving bears an even load anyway.
    """

    def __init__(self, max_fraction: float = 0.25) -> None:
        self.max_fraction = max_fraction
        self._process = psutil.Process()
        self._mark = self._read()

    def _read(self) -> tuple[float, float]:
        """(now, processor seconds used by everybody else since boot)."""
        every = psutil.cpu_times()
        own = self._process.cpu_times()
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        busy_s = sum(float(getattr(every, kind, 0.0)) for kind in kinds)
        return time.perf_counter(), busy_s - own.user - own.system

    def __call__(self) -> str | None:
        """The share of others since the last call if it is above the limit, else None."""
        before, self._mark = self._mark, self._read()
        wall_s, foreign_s = self._mark[0] - before[0], self._mark[1] - before[1]
        if wall_s < MIN_ROUND_S:
            return None
        fraction = foreign_s / (wall_s * (psutil.cpu_count() or 1))
        if fraction <= self.max_fraction:
            return None
        return f"other processes used {fraction:.0%} of the processors for {wall_s:.2g} s"
