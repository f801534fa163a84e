"""Outside evidence that a round was disturbed. It never looks at the samples.

A machine without psutil, such as a lent one where nothing can be installed, gives no evidence: nothing is dropped.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

MIN_ROUND_S = 0.1
"""Processor accounting counts in ticks of 10 ms: a shorter round says nothing."""

BUSY_LOOK_S = 0.3
_QUOTA_FILES = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))


@dataclass(frozen=True)
class Reading:
    """What the system knows at one moment; processor seconds since boot, summed over all processors."""

    now_s: float
    foreign_s: float
    steal_s: float
    throttled_s: float


def _throttled_s() -> float:
    """Seconds that a quota on processor time has held this container back, over all of its processors."""
    for path in _QUOTA_FILES:
        try:
            lines = dict(line.split() for line in path.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if "throttled_usec" in lines:
            return int(lines["throttled_usec"]) * 1e-6
        if "throttled_time" in lines:
            return int(lines["throttled_time"]) * 1e-9
    return 0.0


def read() -> Reading | None:
    """What the system knows now; all but this process are foreigners. None without psutil."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    every, own = psutil.cpu_times(), psutil.Process().cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq")
    busy_s = sum(float(getattr(every, kind, 0.0)) for kind in kinds)
    steal_s = float(getattr(every, "steal", 0.0))
    return Reading(time.perf_counter(), busy_s - own.user - own.system, steal_s, _throttled_s())


def _evidence(before: Reading | None, after: Reading | None, max_fraction: float) -> str | None:
    if before is None or after is None:
        return None
    wall_s = after.now_s - before.now_s
    if wall_s < MIN_ROUND_S:
        return None
    capacity_s = wall_s * (os.cpu_count() or 1)
    shares = {
        "other processes used {} of the processors": (after.foreign_s - before.foreign_s) / capacity_s,
        "the machine's host took {} of the processors": (after.steal_s - before.steal_s) / capacity_s,
        "a quota held this process back for {} of the time": (after.throttled_s - before.throttled_s)
        / wall_s,
    }
    told = [text.format(f"{share:.0%}") for text, share in shares.items() if share > max_fraction]
    return f"{', '.join(told)} for {wall_s:.2g} s" if told else None


class ForeignLoad:
    """A round is disturbed if other processes, the virtual machine's host or a quota took too much processor time.

    Args:
        max_fraction: of all processors' time during the round. Kept loose: on a busy shared machine a
            strict limit drops every round, and interleaving bears an even load anyway.
    """

    def __init__(self, max_fraction: float = 0.25) -> None:
        self.max_fraction = max_fraction
        self._mark = read()

    def __call__(self) -> str | None:
        """What speaks against the time since the last call, or None."""
        before, self._mark = self._mark, read()
        return _evidence(before, self._mark, self.max_fraction)


def busy_machine(look_s: float = BUSY_LOOK_S, max_fraction: float = 0.25) -> str | None:
    """What else this machine is doing, in words; None where it is quiet. Looks for `look_s` seconds."""
    before = read()
    time.sleep(look_s)
    told = _evidence(before, read(), max_fraction)
    if told is None:
        return None
    try:
        running = f"; {Path('/proc/loadavg').read_text().split()[3].split('/')[0]} tasks want to run"
    except (OSError, IndexError):
        running = ""
    return (
        f"this machine is busy: {told}{running} on {os.cpu_count()} processors. Rounds are dropped where it shows, a "
        f"quarter of them at most; times will scatter"
    )
