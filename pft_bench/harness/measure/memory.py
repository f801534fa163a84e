"""Peak memory of one call: what torch allocated, and what the whole process held."""

from __future__ import annotations

import gc
import os
import re
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# torch's profiler announces each start and stop on stderr otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """A peak in bytes and where the number comes from."""

    bytes: int
    source: str


def peak_of_events(sizes_bytes: Iterable[int]) -> int:
    """Highest running sum of allocations (positive) and frees (negative), from 0; never below 0."""
    held = peak = 0
    for size in sizes_bytes:
        held += size
        peak = max(peak, held)
    return peak


def allocator_events(recorded: profile, device_type: str) -> list[tuple[int, int]]:
    """(nanoseconds, bytes) of all allocator events on "cpu" or "cuda", in order of time; bytes are negative for a free.

    `profiler.key_averages()` sums by operator and loses the order, so the raw event list is read. Only memory
    of the torch allocator is seen: what a kernel takes with `malloc` shows in `peak_process` alone.
    """
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    kind = getattr(torch.profiler.DeviceType, device_type.upper())
    return sorted(
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]  # missing in torch's stub
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == kind
    )


def peak_allocated(call: Callable[[], object], device: torch.device | str = "cpu") -> Peak:
    """Highest sum of bytes that torch's allocator holds during `call()`, above what it held at its start.

    Run it warm and apart from any timing: the profiler slows the call down.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start_bytes = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - start_bytes, "cuda-allocator")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    sizes = [size for _, size in allocator_events(recorded, "cpu")]
    return Peak(peak_of_events(sizes), "torch-profiler-events")


def _status_bytes(key: str) -> int | None:
    """A `key: N kB` line of /proc/self/status. It has VmHWM, which psutil leaves out, and needs no package."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def resident_bytes() -> int:
    """What the process holds in memory now (Linux; elsewhere its peak so far, which is at least that)."""
    return _status_bytes("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> bool:
    """Set VmHWM back to the present size (`man 5 proc`, clear_refs). Some sandboxes ignore it silently."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    peak = _status_bytes("VmHWM")
    return peak is not None and peak <= resident_bytes() + (4 << 20)


def peak_process(call: Callable[[], object]) -> Peak:
    """Peak resident memory of the whole process during `call()`, Python and libraries included.

    Where the kernel's mark cannot be reset it is the peak since the process began, and the source says so.
    """
    gc.collect()
    was_reset = _reset_peak()
    call()
    peak_bytes = _status_bytes("VmHWM") if was_reset else None
    if peak_bytes is not None:
        return Peak(peak_bytes, "VmHWM")
    # Linux counts in KiB, macOS in bytes; this project runs on Linux.
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "ru_maxrss since process start")
