"""`pft-bench selftest`: does the harness catch wrong kernels and wrong timers, and how often is a verdict wrong?"""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ..common.container import check_threads
from ..common.terminal import Console, Table, line
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.cases.group import thread_count
    from ..harness.measure.environment import environment
    from ..harness.measure.verdicts import Verdict
    from ..harness.record import begin_run
    from ..harness.selftest.builds import run_builds
    from ..harness.selftest.known_answers import BUILDS, KINDS, TRIALS, Rates, Trial, rates, read_trials
    from ..harness.selftest.mutation import false_alarms, run_mutants
    from ..harness.selftest.trials import run_trials

WORDS = {"A/A": "identical code", "+5%": "5% more work", "A/A builds": "two builds of a commit"}


def selftest(
    context: typer.Context,
    verdicts: Annotated[
        int,
        typer.Option(min=0, help="Also judge this many comparisons of identical code and of 5% more work."),
    ] = 0,
    builds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also build this commit twice and judge this many comparisons of the two, as `compare --baseline` "
            "makes them.",
        ),
    ] = 0,
    threads: options.Threads = 1,
    out: Annotated[
        Path | None, options.folder(help="Folder of the comparisons; a folder that exists is continued.")
    ] = None,
    stop_after: Annotated[
        float, typer.Option(help="Seconds after which no further comparison is begun.")
    ] = float("inf"),
) -> None:
    """Plant wrong kernels and wrong timers: each must be caught.

    With --verdicts or --builds, measure the rate of false verdicts, too.

    Exit code 1 if anything survives, if more than 2% of the comparisons of identical code find a difference, if fewer
    than 75% of the planted slowdowns are found, or if one is called faster or the same.
    """
    if not verdicts and not builds:
        options.refuse(
            context, ("threads", "out", "stop_after"), "belongs to --verdicts and --builds: give one of them"
        )
    console = Console()
    with thread_count(1):
        sound = plant(console)
    if verdicts or builds:
        folder = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S_verdicts")
        sound = sound & judge_verdicts(folder, verdicts, builds, check_threads(threads), stop_after, console)
    if not sound:
        raise typer.Exit(1)


def plant(console: Console) -> bool:
    """Plant everything that is wrong, and look for alarms where nothing is."""
    table = Table("wrong kernel or timer", "", "killed by", title="Planted on purpose")
    outcomes = list(run_mutants())
    for item in outcomes:
        mark = (
            ("skipped", "")
            if item.skipped
            else ("killed", "green")
            if item.killed
            else ("SURVIVED", "bold red")
        )
        others = [name for name in item.killed_by if name != item.target]
        by = item.skipped or ", ".join([item.target, *others] if item.killed else others)
        table.add_row(item.name, line(mark), by)
    console.print(table)
    alarms = false_alarms()
    for alarm in alarms:
        console.print(f"false alarm on a right kernel or timer: {alarm}", style="bold red")
    tried = [item for item in outcomes if item.skipped is None]
    killed = sum(item.killed for item in tried)
    skipped = len(outcomes) - len(tried)
    console.print(
        f"killed {killed}/{len(tried)}"
        + (f", {skipped} skipped" if skipped else "")
        + f"; false alarms: {len(alarms)}",
    )
    return killed == len(tried) and not alarms


def judge_verdicts(
    folder: Path, verdicts: int, builds: int, threads: int, stop_after_s: float, console: Console
) -> bool:
    """Run the comparisons that the folder lacks, and print the rates."""
    path = folder / TRIALS
    with begin_run(folder) as run:
        fingerprint = run.remember(environment())
        made = [run_trials(path, verdicts, fingerprint, threads, stop_after_s)] if verdicts else []
        made += [run_builds(path, builds, fingerprint, threads, stop_after_s)] if builds else []
        for trial in chain.from_iterable(made):
            console.print(describe(trial))
        found = rates(read_trials(path))
    console.print(rates_table([item for item in found if item.trials]))
    counts = {item.kind: item.trials for item in found}
    missing = sum(max(0, verdicts - counts[kind]) for kind in KINDS) + max(0, builds - counts.get(BUILDS, 0))
    if missing > 0:
        console.print(f"{missing} comparisons are left: run the same command again with --out {folder}")
    return all(holds(item) for item in found)


def describe(trial: Trial) -> str:
    """One comparison in a line."""
    found = trial.evidence
    interval = "no interval" if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
    return (
        f"{trial.kind:>3} {trial.number:3}  {trial.verdict.value:<9}  {found.ratio:.3f} {interval}  "
        f"{found.rounds} rounds, {trial.samples.elapsed_s:.1f} s, load {trial.load:.1f}"
    )


def holds(item: Rates) -> bool:
    """At most 2% of identical code called different; at least 75% of slowdowns found and none reversed."""
    if item.kind in ("A/A", BUILDS):
        return item.wrong <= 0.02 * item.trials
    return item.right >= 0.75 * item.trials and item.wrong == 0


def rates_table(found: list[Rates]) -> Table:
    """Counts of verdicts by kind."""
    names = ("comparisons", *(word.value for word in Verdict), "right", "wrong")
    table = Table("B against A", numbers=names, title="Verdicts on known answers")
    for item in found:
        share = [f"{part / max(item.trials, 1):.1%}" for part in (item.right, item.wrong)]
        counts = [str(item.counts[word]) for word in Verdict]
        table.add_row(WORDS[item.kind], str(item.trials), *counts, *share)
    return table
