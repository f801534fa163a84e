"""One sample of one callable, in seconds a call. Each way of sampling has a name, and names are never mixed.

All contenders of a comparison go through one timer object, chosen once (`timer_for`).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    # Nothing of this package is imported at run time: `compare` runs this file beside older versions of it.
    from .verified import Verified

MIN_BLOCK_S = 0.005
"""A shorter CPU block says more about the clock and the scheduler than about the call."""

MAX_WALL = 4
"""How many times its minimum a block may last with the new inputs that its calls get; else it has fewer calls."""

OTHER_STREAMS_NS = 50_000
"""A device that is busy for longer than this after the last event works on another stream."""

WARMUP_S = 0.1
WARMUP_CALLS = 3
SLOW_CALL_S = 0.25


class Timer(Protocol):
    """Samples verified callables by one method."""

    method: str

    def warm_up(self, subject: Verified) -> None:
        """Bring caches, thread pools, allocators and lazy initialisation into their steady state."""

    def calibrate(self, subject: Verified) -> int:
        """Calls in one sample; found once a contender, stored with its samples."""

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """Seconds a call, from one block of `repeats` calls."""


_now_ns = time.perf_counter_ns
"""This module's own reference: a kernel that replaces the clock's name changes nothing here."""


def _block_s(subject: Verified, repeats: int) -> float:
    """Seconds of so many calls. Where inputs change between calls, each is timed by itself and only the calls count."""
    call = subject.call
    if getattr(subject, "changes", False):  # subjects of older versions, which `compare` drives, do not
        return _laps_s(subject, repeats)
    start = _now_ns()
    for _ in range(repeats):
        call()
    return (_now_ns() - start) * 1e-9


def _laps_s(subject: Verified, repeats: int) -> float:
    call, renew, returned = subject.call, subject.renew, subject.returned
    total_ns = 0
    for _ in range(repeats):
        renew()
        before = subject.state()
        start = _now_ns()
        output = call()
        total_ns += _now_ns() - start
        returned(output, before)
        del output
    return total_ns * 1e-9


def untimed(subject: Verified) -> None:
    """One call on fresh inputs."""
    if not getattr(subject, "changes", False):
        subject.call()
        return
    subject.renew()
    before = subject.state()
    subject.call()
    if hasattr(subject, "unreached"):  # subjects of older versions do not look here
        subject.unreached(before)


class CpuTimer:
    """Repeats the call until a block lasts `min_block_s`, by `time.perf_counter_ns`, caches warm."""

    method = "cpu-block"

    def __init__(self, min_block_s: float = MIN_BLOCK_S) -> None:
        self.min_block_s = min_block_s

    def warm_up(self, subject: Verified) -> None:
        """At least three calls and 0.1 s; one call of 0.25 s is enough, its check has run it before."""
        start = time.perf_counter()
        for done in range(1, 100_000):
            before = time.perf_counter()
            untimed(subject)
            now = time.perf_counter()
            enough = done >= WARMUP_CALLS and now - start >= WARMUP_S
            if enough or now - before >= SLOW_CALL_S:
                return

    def calibrate(self, subject: Verified) -> int:
        """The number of calls whose fastest of three blocks fills `min_block_s`.

        The fastest, because a block that was disturbed once would leave every later block too short.
        """
        repeats = 1
        while True:
            started_ns = _now_ns()
            block_s = _block_s(subject, repeats)
            if block_s >= 10 * self.min_block_s:
                return repeats  # no disturbance makes a call this long worth more looks
            wall_s = (_now_ns() - started_ns) * 1e-9
            if wall_s >= MAX_WALL * self.min_block_s and wall_s > 2 * block_s:
                return repeats  # most of it goes into new inputs
            block_s = min(block_s, _block_s(subject, repeats), _block_s(subject, repeats))
            if block_s >= self.min_block_s:
                return repeats
            # 10% more than asked for, so that one more round of this loop does it; at most tenfold, since a
            # very short block is mostly the clock.
            wanted = math.ceil(1.1 * repeats * self.min_block_s / max(block_s, 1e-9))
            repeats = min(max(wanted, repeats + 1), 10 * repeats)

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """One block. Short calls get one untimed call first: what ran before them has taken the cache."""
        if repeats > 1:
            untimed(subject)
        return _block_s(subject, repeats) / repeats


# PyTorch is imported where a GPU is timed: who reads records has no need of it.


def _event() -> torch.cuda.Event:
    import torch

    return torch.cuda.Event(enable_timing=True)


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def _warm_up_cuda(subject: Verified) -> None:
    start = time.perf_counter()
    for done in range(1, 10_000):
        untimed(subject)
        _synchronize()
        if done >= WARMUP_CALLS and time.perf_counter() - start >= WARMUP_S:
            return


class CudaEventTimer:
    """Cold L2: write a buffer of twice its size, synchronise, then one call between two events."""

    method = "cuda-events-cold-l2"

    def __init__(self, device: torch.device) -> None:
        import torch

        l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.empty(max(2 * l2_bytes, 1 << 20), dtype=torch.int8, device=device)

    def warm_up(self, subject: Verified) -> None:
        """Three calls and 0.1 s at least, so that clocks have risen and kernels are loaded."""
        _warm_up_cuda(subject)

    def calibrate(self, subject: Verified) -> int:
        """Always one: a second call would find its inputs in L2."""
        return 1

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """Device seconds of one call."""
        if repeats != 1:
            raise ValueError(f"{self.method} times one call a sample, got repeats={repeats}")
        start, stop = _event(), _event()
        before = None
        if getattr(subject, "changes", False):
            subject.renew()
            before = subject.state()
        self._flush.zero_()
        _synchronize()
        start.record()
        output = subject.call()
        stop.record()
        stop.synchronize()
        reached_ns = _now_ns()
        _synchronize()
        if _now_ns() - reached_ns > OTHER_STREAMS_NS:  # work on a stream that the event did not wait for
            stop = _event()
            stop.record()
            _synchronize()
        if before is not None:
            subject.returned(output, before)
        return float(start.elapsed_time(stop)) * 1e-3


def timer_for(device: torch.device) -> Timer:
    """What samples calls on this device."""
    return CudaEventTimer(device) if device.type == "cuda" else CpuTimer()
