"""`pft-bench selftest`: does the harness catch wrong kernels and wrong timers, and how often is a verdict wrong?"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..measure.environment import environment
from ..measure.statistics import Verdict
from ..record import lock_folder, remember_environment
from ..selftest.trials import Rates, Trial, rates, read_trials, run_trials
from . import options


def selftest(
    verdicts: Annotated[
        int,
        typer.Option(
            min=0, help="Also judge so many comparisons of identical code, and so many of a planted +5%."
        ),
    ] = 0,
    threads: options.Threads = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparisons; going on where it ended.")
    ] = None,
    stop_after: Annotated[
        float, typer.Option(help="Seconds after which no further comparison is begun.")
    ] = float("inf"),
) -> None:
    """Plant wrong kernels and wrong timers: each must be caught. With --verdicts, measure the rate of false verdicts.

    Exit code 1 if anything survives, if more than 2% of the comparisons of identical code find a difference, if fewer
    than 75% of the planted slowdowns are found, or if one is called faster or the same.
    """
    console = Console()
    sound = True
    if verdicts:
        folder = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S_verdicts")
        sound = judge_verdicts(folder, verdicts, threads or (os.cpu_count() or 1), stop_after, console)
    if not sound:
        raise typer.Exit(1)


def judge_verdicts(folder: Path, count: int, threads: int, stop_after_s: float, console: Console) -> bool:
    """Run the comparisons that the folder lacks, and print the rates."""
    path = folder / "trials.jsonl"
    with lock_folder(folder):
        fingerprint = remember_environment(folder, environment())
        for trial in run_trials(path, count, fingerprint, threads, stop_after_s):
            console.print(describe(trial), highlight=False)
        trials = read_trials(path)
    found = rates(trials)
    console.print(rates_table(found))
    missing = sum(count - item.trials for item in found)
    if missing > 0:
        console.print(f"{missing} comparisons are left: run the same command again with --out {folder}")
    return all(holds(item) for item in found)


def describe(trial: Trial) -> str:
    """One comparison in a line."""
    found = trial.evidence
    interval = "no interval" if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
    return (
        f"{trial.kind:>3} {trial.number:3}  {trial.verdict.value:<9}  {found.ratio:.3f} {interval}  "
        f"{found.rounds} rounds, {trial.elapsed_s:.1f} s, load {trial.load:.1f}"
    )


def holds(item: Rates) -> bool:
    """At most 2% of identical code called different; at least 75% of slowdowns found and none reversed."""
    if item.kind == "A/A":
        return item.wrong <= 0.02 * item.trials
    return item.right >= 0.75 * item.trials and item.wrong == 0


def rates_table(found: list[Rates]) -> Table:
    """Counts of verdicts by kind."""
    table = Table(title="Verdicts on known answers", title_justify="left", header_style="bold")
    for name in ("B against A", "comparisons", *(word.value for word in Verdict), "right", "wrong"):
        table.add_column(name, justify="left" if name == "B against A" else "right")
    for item in found:
        share = [f"{part / max(item.trials, 1):.1%}" for part in (item.right, item.wrong)]
        counts = [str(item.counts[word]) for word in Verdict]
        kind = "identical code" if item.kind == "A/A" else "5% more work"
        table.add_row(kind, str(item.trials), *counts, *share)
    return table
