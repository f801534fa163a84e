"""What a container, or any other control group, lets this process use: neither the number of cores nor torch tells.

A quota gives processor time, not cores: a process with more threads than it covers is stopped for the rest of each
period. Linux only, cgroup v1 and v2; elsewhere, and where nothing is limited, every answer is None.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number of bytes near 2**63."""


def usable_cores() -> int:
    """Threads that can run at once: cores of this process, or what its quota covers, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def require_possible(threads: int) -> int:
    """The largest number of threads here; ValueError for one that is larger or negative.

    Up to four a core: more is a mistake, and far more ends the OpenMP runtime with a crash. Under a CPU quota not one
    more than it covers: the process would be stopped again and again, and no time of it would mean anything.
    """
    quota, cores = cpu_quota(), usable_cores()
    most = 4 * cores if quota is None else cores
    if threads < 0:
        raise ValueError(f"threads must be at least 0, got {threads}")
    if threads > most:
        why = "" if quota is None else f", whose CPU quota is {quota:g} cores"
        raise ValueError(f"threads must be at most {most} here{why}, got {threads}")
    return most


def check_threads(threads: int) -> int:
    """The number of threads to use, where 0 means torch's own choice; ValueError for too many."""
    import torch

    most = require_possible(threads)
    return threads or min(torch.get_num_threads(), most)


def respect_quota() -> None:
    """Let torch, where it is loaded, and libvips, once it is, start no more threads than a quota covers."""
    if cpu_quota() is not None:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        os.environ.setdefault("VIPS_CONCURRENCY", str(usable_cores()))


def cpu_quota(root: Path | None = None) -> float | None:
    """Processor seconds a second that this process may use, None without a limit; `root` holds /proc and /sys."""
    found = []
    for folder in _groups(root or ROOT, "cpu"):
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]  # v2: "150000 100000" or "max 100000"
        if not quota:
            quota = "".join(_words(folder / "cpu.cfs_quota_us"))  # v1: -1 for none
            period = "".join(_words(folder / "cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path | None = None) -> int | None:
    """Bytes that this process and its group may hold; None without a limit."""
    return min((limit for limit, _ in _memory(root or ROOT)), default=None)


def memory_left(root: Path | None = None) -> int | None:
    """Bytes that the group may still take, what its page cache would give back counted; None without a limit."""
    left = [
        limit - int(used[0]) + _reclaimable(folder)
        for limit, folder in _memory(root or ROOT)
        if (used := _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes"))
    ]
    return max(0, min(left)) if left else None


def _memory(root: Path) -> Iterator[tuple[int, Path]]:
    for folder in _groups(root, "memory"):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if words and words[0].isdecimal() and int(words[0]) < _UNLIMITED:
            yield int(words[0]), folder


def _reclaimable(folder: Path) -> int:
    words = _words(folder / "memory.stat")
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return int(counts.get("total_inactive_file") or counts.get("inactive_file") or 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, with those around them: each may set a limit.

    In a container the path is often the host's, and what is mounted begins at the container's own group.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            tops = [mounted, mounted / "unified"]
        elif controller in controllers.split(","):
            tops = [mounted / controllers, mounted / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        depth = 0 if ".." in parts else len(parts)
        for top in tops:
            yield from (top.joinpath(*parts[:length]) for length in range(depth, -1, -1))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()
