"""Counts of one launch as the counting emulator gives them, by place in the source and summed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Files that are the emulator's own: a place in them is named by who called it.
_EMULATOR = re.compile(r"^(view|vocabulary|mma|emulator|half|tally|std_function|invoke)\.h:")


@dataclass(frozen=True)
class Site:
    """One instruction of the source in one launch."""

    offset: int
    """Code address in the emulator's module; `places` turns it into a line."""
    kind: str
    space: str
    bytes: int
    requests: int
    lanes: int
    wavefronts: int
    unmerged: int
    conflict_free: int
    sectors: int
    sectors_ideal: int
    l1_cycles: int

    def plus(self, other: Site) -> Site:
        """Both together, at the place of this one."""
        names = [name for name in vars(self) if name not in ("offset", "kind", "space", "bytes")]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def cost(self) -> int:
        """Cycles of the path that shared memory and L1 have in common."""
        return self.wavefronts + (0 if self.kind == "async" else self.l1_cycles)

    @property
    def way(self) -> str:
        """`read`, `write` or `async`: how the request counts in the sums of global memory."""
        return "async" if self.kind == "async" else "write" if self.kind in ("store", "atomic") else "read"


@dataclass(frozen=True)
class CountedLaunch:
    """One launch of a kernel: `blocks_run` of its `blocks` were emulated, and the counts are of those."""

    kernel: str
    dtype: str
    blocks: int
    blocks_run: int
    threads: int
    warps: int
    shared_bytes: int
    requests: int
    parted: int
    doubtful: int
    bytes_read_once: int
    bytes_read_by_many: int
    bytes_written: int
    sectors_of_blocks: int
    ops: dict[str, int]
    steps: tuple[tuple[int, str, int], ...] = ()
    sites: tuple[Site, ...] = ()
    summed: dict[str, int] | None = None
    """What `totals` says where the sites are not kept: in a file."""

    @classmethod
    def of(cls, counted: dict[str, Any], dtype: str) -> CountedLaunch:
        """From what `take_counts` of the native module says."""
        made = dict(counted, dtype=dtype)
        made["sites"] = tuple(Site(**site) for site in counted["sites"])
        made["steps"] = tuple(map(tuple, counted["steps"]))
        return cls(**made)

    def totals(self) -> dict[str, int]:
        """All counts of the blocks that ran, by name; see reports/counters.md for what each means."""
        if self.summed is not None:
            return self.summed
        sums: Counter[str] = Counter()
        for site in self.sites:
            if site.space == "shared":
                sums["shared_requests"] += site.requests
                for name in ("wavefronts", "unmerged", "conflict_free"):
                    sums[name] += getattr(site, name)
                sums["ldmatrix"] += site.requests if site.kind == "ldmatrix" else 0
            else:
                sums[f"{site.way}_requests"] += site.requests
                sums[f"{site.way}_sectors"] += site.sectors
                sums[f"{site.way}_sectors_ideal"] += site.sectors_ideal
                sums["l1_cycles"] += 0 if site.kind == "async" else site.l1_cycles
            sums["atomics"] += site.requests if site.kind == "atomic" else 0
        for _, step, count in self.steps:
            sums[step] += count
        names = ("warps", "requests", "parted", "doubtful")
        return dict(sorted({**sums, **self.ops, **{n: getattr(self, n) for n in names}}.items()))

    def summary(self) -> dict[str, Any]:
        """All but the places, for a file; `CountedLaunch(**summary)` predicts the same."""
        kept = {name: value for name, value in vars(self).items() if name not in ("steps", "sites")}
        return kept | {"summed": self.totals()}

    @property
    def doubtful_share(self) -> float:
        """Of the requests, those whose lanes may have been put together wrongly."""
        return self.doubtful / max(1, self.requests)


def places(module: Path, offsets: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Source lines of code addresses, innermost first, through everything that was inlined; without the emulator's own.

    Empty where there is no addr2line (of binutils).
    """
    tool, wanted = shutil.which("addr2line"), sorted(set(offsets))
    if tool is None or not wanted:
        return {}
    # the address of a call is what it returns to: one byte before lies in the call
    addresses = "\n".join(hex(offset - 1) for offset in wanted)
    command = [tool, "-e", str(module), "-a", "-i", "-s"]
    said = subprocess.run(command, input=addresses, capture_output=True, text=True, check=True).stdout
    found: list[list[str]] = []
    for line in said.splitlines():
        if line.startswith("0x"):
            found.append([])
        elif not _EMULATOR.match(line):
            found[-1].append(re.sub(r" \(discriminator.*", "", line))
    return {offset: tuple(lines) for offset, lines in zip(wanted, found, strict=True)}
