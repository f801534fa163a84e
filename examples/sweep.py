"""Measure several schedules inside PFT, then read the records with pandas.

    python examples/sweep.py [FOLDER]

The folder gets one line of JSON for each row, with every raw sample; a folder that is there already is only read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pft_bench.harness.record import RunFolder, to_frame

SCHEDULES = ("1024,256,128", "1024,256,64", "1024,128,32")


def measure(folder: Path, *options: str) -> None:
    """Run the sweep as the command line does. Exit code 1 would mean that a row has no time and says why."""
    schedules = [argument for schedule in SCHEDULES for argument in ("--sched", schedule)]
    command = [sys.executable, "-m", "pft_bench", "run", *schedules, "--level", "model", "--out", str(folder)]
    subprocess.run([*command, *options], check=True)


def main(folder: Path, *options: str) -> None:
    """Print latency and its ratio to that of the dense baseline (below 1: faster), with the 95% interval."""
    if not folder.exists():
        measure(folder, *options)
    frame = to_frame(RunFolder.read(folder).records)
    columns = ["schedule", "backend", "status", "median_s", "ratio", "ratio_low", "ratio_high", "verdict"]
    print(frame[columns].sort_values("median_s").to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"), *sys.argv[2:])
