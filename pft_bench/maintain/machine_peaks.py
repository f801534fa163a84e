"""What this machine reaches on the jobs that bound the CPU kernels: FMAs, and loads from each level of cache.

`make machine-peaks` runs it. The floors of kernels/cpu/README.md are these rates.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.container import check_threads
from ..common.drafts import make_folder
from ..common.native import load_native
from ..common.terminal import Console, Table
from ..common.text import counted
from ..harness.measure.environment import environment

_cpu: Any = load_native("_cpu")

KIB = 1024
JOBS = (
    ("fma_flops", 0, "FMA, registers"),
    ("load_bytes", 16 * KIB, "loads, 16 KiB (L1)"),
    ("load_bytes", 160 * KIB, "loads, 160 KiB (a window-head's keys)"),
    ("load_bytes", 512 * KIB, "loads, 512 KiB"),
    ("load_bytes", 4096 * KIB, "loads, 4 MiB"),
    ("load_bytes", 128 * KIB * KIB, "loads, 128 MiB (memory)"),
    ("gather_bytes", 16 * KIB, "random rows of 160 bytes, of 16 KiB"),
    ("gather_bytes", 160 * KIB, "random rows of 160 bytes, of 160 KiB"),
)
"""What is measured: kind, bytes of each thread's block, and a name. Names of caches are those of common machines."""


@dataclass(frozen=True)
class MachinePeak:
    """One measured rate, in FLOP/s or bytes/s, of all threads together."""

    what: str
    block_bytes: int
    name: str
    threads: int
    per_second: float


def measure_peaks(threads: tuple[int, ...] = (1, 2)) -> list[MachinePeak]:
    """All jobs on each number of threads; about three seconds each."""
    return [
        MachinePeak(what, size, name, count, _cpu.peak_per_second(what, size, count))
        for what, size, name in JOBS
        for count in threads
    ]


def table(peaks: list[MachinePeak]) -> Table:
    """A row for each job, a column for each number of threads, in 10^9 a second."""
    counts = sorted({peak.threads for peak in peaks})
    names = [counted(count, "thread") for count in counts]
    shown = Table("job", numbers=names, title=f"Peaks, {_cpu.isa()}: GFLOP/s and GB/s")
    for what, size, name in JOBS:
        rates = {p.threads: p.per_second for p in peaks if (p.what, p.block_bytes) == (what, size)}
        shown.add_row(name, *(f"{rates[count] / 1e9:.1f}" for count in counts))
    return shown


def main() -> None:
    """Print the table; with --out also write machine_peaks.json there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for machine_peaks.json")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="default: 1 and as many as torch takes by itself"
    )
    options = parser.parse_args()
    try:
        counts = {check_threads(count) for count in options.threads or (1, 0)}
    except ValueError as error:
        parser.error(str(error))
    peaks = measure_peaks(tuple(sorted(counts)))
    Console().print(table(peaks))
    if options.out is not None:
        make_folder(options.out)
        here = {key: value for key, value in environment().items() if key != "host"}
        found = {"isa": _cpu.isa(), "peaks": [asdict(peak) for peak in peaks], "environment": here}
        (options.out / "machine_peaks.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
