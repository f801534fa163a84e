"""Is a timer sound? It times calls of known cost before it may time anything else.

Only lower bounds can be strict: a busy machine adds time, it never takes any away. Where too much would be wrong, the
fastest of several samples is compared with several times the truth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from .admission import verify
from .contender import Call, Contender
from .timer import Timer
from .verified import Verified

COST_S = 0.001
REPEATS = 16
ATTEMPTS = 20


@dataclass(frozen=True)
class Finding:
    """One question to a timer."""

    name: str
    passed: bool
    detail: str = ""


class Probe(Protocol):
    """Calls of known cost on one device."""

    def work(self) -> Call:
        """A call whose work takes at least `COST_S` on the device, whenever the call itself returns."""

    def cached(self) -> tuple[Call, float] | None:
        """A call and the seconds between which its warm and its cold time lie; None if the device cannot tell."""


class CpuProbe:
    """Spins on the clock."""

    def work(self) -> Call:
        """Returns after COST_S."""

        def spin() -> None:
            until = time.perf_counter() + COST_S
            while time.perf_counter() < until:
                pass

        return spin

    def cached(self) -> None:
        """CPU timers claim warm caches, so there is nothing to refute."""


class CudaProbe:
    """Sleeps on the device; reads a buffer that fills half of L2."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def _host_s(self, call: Call) -> float:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        call()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def work(self) -> Call:
        """Returns at once; the device is busy for COST_S, by the host's clock."""
        cycles = 1_000_000
        while True:
            sleep: Call = partial(torch.cuda._sleep, cycles)
            if min(self._host_s(sleep) for _ in range(3)) >= 1.2 * COST_S:
                return sleep
            cycles *= 2

    def cached(self) -> tuple[Call, float]:
        """Adds up a buffer; the limit is the mean of its warm time and of its time after L2 was overwritten."""
        l2_bytes = int(torch.cuda.get_device_properties(self.device).L2_cache_size)
        buffer = torch.zeros(l2_bytes // 8, device=self.device)
        flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=self.device)

        def read() -> object:
            return buffer.sum()

        def device_s(cold: bool) -> float:
            found = []
            for _ in range(20):
                if cold:
                    flush.zero_()
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize(self.device)
                start.record()
                read()
                stop.record()
                torch.cuda.synchronize(self.device)
                found.append(start.elapsed_time(stop) * 1e-3)
            return sorted(found)[len(found) // 2]

        return read, (device_s(False) + device_s(True)) / 2


class _Known:
    """The probe's calls need no check of values."""

    name, passed, detail = "call of known cost", True, ""


def _verified(name: str, call: Call) -> Verified:
    found = verify(Contender(name, call, lambda _: [_Known()]))
    assert isinstance(found, Verified)
    return found


def audit(timer: Timer, probe: Probe) -> list[Finding]:
    """Three questions: is the whole work timed, is the time that of one call, is cold cold?"""
    work = _verified("work", probe.work())
    timer.warm_up(work)
    single_only = "cold" in timer.method  # such a timer takes one call a sample
    samples = [timer.sample_s(work, 1) for _ in range(3)]
    least = min(samples)
    findings = [
        Finding(
            "timer: whole call",
            least >= 0.9 * COST_S,
            f"reports {least * 1e3:.3g} ms for a call of {COST_S * 1e3:g} ms",
        )
    ]
    if not single_only:
        each = _per_call_s(timer, work)
        findings.append(
            Finding(
                "timer: per call",
                0.9 * COST_S <= each <= REPEATS / 2 * COST_S,
                f"reports {each * 1e3:.3g} ms a call in blocks of {REPEATS} calls of {COST_S * 1e3:g} ms",
            )
        )
    cached = probe.cached() if single_only else None
    if cached is not None:
        call, limit_s = cached
        subject = _verified("cached", call)
        timer.warm_up(subject)
        seen = sorted(timer.sample_s(subject, 1) for _ in range(9))[4]
        findings.append(
            Finding(
                "timer: cold",
                seen >= limit_s,
                f"claims cold caches and reports {seen * 1e6:.3g} us; cold lies above {limit_s * 1e6:.3g} us",
            )
        )
    return findings


def _per_call_s(timer: Timer, work: Verified) -> float:
    """The least that the timer says of a block; asked again while it could be a neighbour who made it long."""
    least = math.inf
    for _ in range(ATTEMPTS):
        least = min(least, timer.sample_s(work, REPEATS))
        if least <= REPEATS / 4 * COST_S:
            break
    return least


_SOUND: set[tuple[type[Any], str]] = set()


def require_sound(timer: Timer, probe: Probe | None = None) -> None:
    """RuntimeError if the timer fails its audit; asked once a process for each kind of timer."""
    key = type(timer), timer.method
    if key in _SOUND:
        return
    if probe is None:
        on_gpu = timer.method.startswith("cuda")
        probe = CudaProbe(torch.device("cuda", torch.cuda.current_device())) if on_gpu else CpuProbe()
    bad = failures(audit(timer, probe))
    if bad:
        raise RuntimeError("; ".join(f"{finding.name}: {finding.detail}" for finding in bad))
    _SOUND.add(key)


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """Those that did not pass."""
    return [finding for finding in findings if not finding.passed]
