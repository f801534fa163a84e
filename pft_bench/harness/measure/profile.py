"""A profile of one call: named ranges, a trace for Perfetto, the memory over time, and on a GPU the kernels' times."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ...common.drafts import draft
from .memory import allocator_events


@contextmanager
def marked(name: str) -> Iterator[None]:
    """A range of this name for torch's profiler and, where the nvtx package is installed, for NVIDIA's tools."""
    with ExitStack() as stack:
        stack.enter_context(record_function(name))
        try:
            import nvtx
        except ImportError:
            pass
        else:
            stack.enter_context(nvtx.annotate(name))
        yield


@dataclass(frozen=True)
class KernelTime:
    """Time of one GPU kernel (CUPTI), summed over its launches."""

    name: str
    launches: int
    total_us: float


@dataclass(frozen=True)
class Profile:
    """What one profiled call showed. `memory` is (microseconds since the start, bytes held above it)."""

    memory: tuple[tuple[float, int], ...]
    kernels: tuple[KernelTime, ...]

    @property
    def peak_bytes(self) -> int:
        """The highest point of the memory's course."""
        return max((held for _, held in self.memory), default=0)


def profiled(call: Callable[[], object], device: torch.device | str, trace: Path) -> Profile:
    """Run `call()` under torch's profiler and write `trace` (Chrome's JSON, which ui.perfetto.dev opens).

    Run it warm; it is several times slower than without. Memory is that of torch's allocator on `device`.
    """
    device = torch.device(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as recorded:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    _export(recorded, trace)
    return Profile(_memory(recorded, device), _kernels(recorded))


def _export(recorded: profile, trace: Path) -> None:
    """Torch writes a draft of its own, and where the disk is full it leaves that and says nothing."""
    with draft(trace) as made:
        try:
            recorded.export_chrome_trace(str(made))
            with made.open("rb") as file:
                file.seek(-min(made.stat().st_size, 64), os.SEEK_END)
                whole = file.read().rstrip().endswith(b"}")
            if not whole:
                raise OSError(
                    errno.EIO, "Could not be written by torch's profiler; is the disk full?", str(trace)
                )
        finally:
            made.with_name(f"{made.name}.tmp").unlink(missing_ok=True)


def _memory(recorded: profile, device: torch.device) -> tuple[tuple[float, int], ...]:
    events = allocator_events(recorded, device.type)
    held, course = 0, []
    for start_ns, size in events:
        held += size
        course.append(((start_ns - events[0][0]) / 1e3, held))
    return tuple(course)


def _kernels(recorded: profile) -> tuple[KernelTime, ...]:
    found = [
        KernelTime(event.key, event.count, float(event.self_device_time_total))
        for event in recorded.key_averages()
        if event.device_type == torch.profiler.DeviceType.CUDA and event.self_device_time_total > 0
    ]
    return tuple(sorted(found, key=lambda kernel: -kernel.total_us))


def write_memory(course: tuple[tuple[float, int], ...], path: Path) -> None:
    """The memory's course as CSV."""
    with draft(path) as made, made.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("time_us", "held_bytes"))
        writer.writerows((f"{time_us:.3f}", held) for time_us, held in course)
