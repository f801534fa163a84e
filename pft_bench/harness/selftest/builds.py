"""How often is `compare --baseline` wrong on identical code? One commit, built twice, compared with itself.

The two builds differ in nothing but their folders. The cases of a table share its processes, so its comparisons are not
independent of each other; those of two tables are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ...common.drafts import make_folder, named
from ..compare.live import Terms, compare_versions
from ..compare.remote import Version
from ..compare.revision import build, cache_folder
from ..measure.verdicts import MARGIN
from .known_answers import BUILDS, Trial, read_trials

CASES = {
    "schedules": ["64", "16"],
    "preset_name": "light",
    "levels": ["op"],
    "device": "cpu",
    "lr_hw": [32, 32],
    "backends": ["cpu"],
}
"""sddmm and spmm of one window of 1024 tokens, at two K: four comparisons a table."""

BUDGET_S = 35.0
"""Seconds a case: a table ends within three minutes."""


def twice(revision: str = "HEAD") -> tuple[Version, Version]:
    """Two builds of one commit, each in a folder of its own."""
    return build(revision), build(revision, cache=cache_folder() / "again")


def run_builds(
    path: Path, count: int, environment: str, threads: int, stop_after_s: float, margin: float = MARGIN
) -> Iterator[Trial]:
    """Add tables of comparisons to `path` until it holds `count` of them; a table is written when it is whole."""
    done = sum(trial.kind == BUILDS for trial in read_trials(path))
    a, b = twice()
    started = time.perf_counter()
    make_folder(path.parent)
    while done < count and time.perf_counter() - started <= stop_after_s:
        settings = {**CASES, "threads": threads}
        with tempfile.TemporaryDirectory(prefix="pft_bench_builds_") as folder:
            table = compare_versions(
                settings, a, b, ["cpu"], Path(folder), Terms(margin, BUDGET_S), seed=done
            )
        made = []
        for row in table.rows:
            if row.samples is None:
                raise RuntimeError(f"{row.title}: {row.reason}")
            made.append(Trial.of(BUILDS, done, environment, threads, margin, row.samples))
            done += 1
        with named(path), path.open("a") as file:
            file.writelines(trial.to_json() + "\n" for trial in made)
        yield from made
