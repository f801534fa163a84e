"""`pft-bench run`: check, measure and report focus schedules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console, Table, line
from ..common.text import counted
from . import options
from .exits import FAILURE
from .work import at_work

if at_work(__name__):
    from ..harness.cases import Group, Settings, check_inputs, left_out, plan_groups
    from ..harness.cases.image import image_notes
    from ..harness.measure.rounds import Plan
    from ..harness.record import (
        ENVIRONMENTS,
        PLAN,
        RECORDS,
        SETTINGS,
        FolderLocked,
        Record,
        RunFolder,
        Status,
        known_environments,
        lock_folder,
        merge_shares,
        read_folder,
        remember_files,
    )
    from ..harness.sweep import Ranks, Shard, Sweep, find_ranks, held_folder, load_plugins
    from ..report import SUMMARY, problem_lines, results_table, stage_table, write_plots, write_summary
    from .progress import Display
    from .sweeping import Limits, going_on_later, opened, run_folder


def run(
    context: typer.Context,
    *,
    sched: options.WeightsSchedules = [],  # noqa: B006 - typer reads it, nobody writes it
    model: options.ModelRun,
    backend: options.Backends = [],  # noqa: B006
    level: Annotated[
        list[str],
        typer.Option(
            help="op, layer, model, or threads (a dense layer, a sparse one and the model on 1 to --threads threads). "
            "Repeatable."
        ),
    ] = ["layer", "model"],  # noqa: B006
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Compare attention variants instead of backends (level model only): dense (the "
            "baseline), topk, progressive, pfa, compute-then-select, hashed, rank-factorized.",
        ),
    ] = None,
    mode: options.Mode = "infer",
    machine: options.Machine,
    seed: options.Seed = 0,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of each case.")] = 20,
    budget: Annotated[
        float, typer.Option(help="Seconds that timing one group may take; checks are not counted.")
    ] = 10.0,
    out: Annotated[Path | None, options.folder(help="Run folder. Default: runs/<date-time>.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run share I of N; shares may write one folder.")
    ] = None,
    supervision: options.Supervision,
    plugin: options.Plugins = [],  # noqa: B006
    list_cases: Annotated[bool, typer.Option("--list", help="Print the cases; run nothing.")] = False,
) -> None:
    """Check each schedule against masked dense attention, then measure latency, memory and FLOPs.

    Writes records.jsonl (raw samples), summary.csv, environment.json and plots to the run folder. A case that runs
    out of memory, crashes or hangs is a row with the reason, and the sweep goes on. Under torchrun, the ranks share
    the sweep.

    --resume continues a folder, provided that nothing its rows depend on has changed: settings, inputs, code,
    plug-ins, machine. Other schedules, levels and backends may be added.

    Exit code 0: every row was checked and measured; 1: some row was not; 2: the command cannot be carried out;
    130: interrupted; continue with --resume.
    """
    if not budget > 0:
        raise ValueError(f"--budget must be positive seconds, got {budget}")
    folder = run_folder(out, supervision.resume)
    limits = Limits.of(context, supervision)
    if attention is not None and set(level) != {"model"}:
        options.refuse(context, ("level",), "must be model alone with --attention, which holds whole models")
    ranks = find_ranks()
    if ranks is not None and shard is not None:
        raise ValueError(f"--shard is what torchrun decides for its ranks, got {shard}")
    share = Shard() if shard is None else Shard.parse(shard)
    if ranks is not None:
        ranks.join()
        share = ranks.shard
    with held_folder(folder, share.name, plugin if not list_cases else ()):
        plugins = load_plugins(plugin)
        settings = Settings.make(
            schedules=sched,
            **model.settings(),
            **machine.settings(),
            backends=backend,
            levels=level,
            mode=mode,
            seed=seed,
            attentions=() if attention is None else [name.strip() for name in attention.split(",")],
            plan=Plan(rounds=rounds, max_rounds=max(60, rounds), budget_s=budget, seed=seed),
        )
        check_inputs(settings)
        groups = plan_groups(settings)
    console = Console.wide(120, quiet=ranks is not None and not ranks.leads)
    for note in image_notes(settings.image):
        console.print(note, style="yellow")
    if list_cases:
        print_plan(groups, share, out, console)
        return
    if ranks is not None:
        folder = Path(ranks.agree(str(folder)))
        if settings.device == "cpu" and not ranks.take_cores(settings.threads):
            console.print("the ranks share cores: their times disturb one another", style="yellow")
    with limits.workers(settings.device, tuple(plugins)) as workers, going_on_later(folder, console):
        sweep = Sweep(settings, folder, share, workers, plugins)
        mine, order = execute(sweep, groups, console, resume=supervision.resume, ranks=ranks)
    with going_on_later(folder, console):
        records = collect(sweep, mine, order, console, ranks)
        if ranks is None or ranks.leads:
            report(records, settings, folder, console)
            if any(record.status is not Status.OK for record in records):
                raise typer.Exit(FAILURE)


def print_plan(groups: Sequence[Group], share: Shard, folder: Path | None, console: Console) -> None:
    """One line a case: whether it is done (in the folder, if one is given), its id, what it is, its backend."""
    done = set() if folder is None else {record.case_id for record in read_folder(folder).records}
    mine = share.of(groups)
    table = Table(box=None, pad_edge=False)
    for name in ("state", "case", "what", "backend"):
        table.add_column(name, overflow="fold")
    for group in groups:
        for name, case in group.cases.items():
            state = "done" if case.case_id in done else "to run" if group in mine else "other share"
            table.add_row(state, case.case_id, group.title, name)
    console.print(table)


def execute(
    sweep: Sweep, groups: Sequence[Group], console: Console, *, resume: bool, ranks: Ranks | None = None
) -> tuple[list[Record], list[str]]:
    """Run this share, appending each record as it comes; with `resume`, what the folder holds is kept.

    Its records, old ones included, and the case ids of the whole plan.
    """
    settings = sweep.settings
    with opened(sweep, groups, console, resume=resume, ranks=ranks) as plan:
        console.print(
            line(
                (settings.preset, "bold"),
                f", {settings.lr_hw[0]}x{settings.lr_hw[1]} input, {settings.mode}, {settings.dtype}, "
                f"{settings.device}, {counted(settings.threads, 'thread')}; backends {', '.join(settings.backends)}; "
                f"{counted(len(plan.left), 'group')} to run -> {sweep.folder}",
            )
        )
        for name, reason in left_out(settings):
            console.print(f"{name} left out: {reason}")
        with Display(console, plan.left) as display:
            new = sweep.run(plan, display)
        own = {case.case_id for group in plan.mine for case in group.cases.values()}
        old = [record for record in plan.done.values() if sweep.shard.name is None or record.case_id in own]
        return [*old, *new], plan.order


def collect(
    sweep: Sweep, mine: list[Record], order: list[str], console: Console, ranks: Ranks | None
) -> list[Record]:
    """All records of the folder, once the shares that are under way have been merged; else those of this share."""
    if sweep.shard.name is None:
        return mine
    if ranks is not None:
        ranks.meet()
        ranks.leave()
        if not ranks.leads:
            return mine
    try:
        with lock_folder(sweep.folder):
            merge_shares(sweep.folder, order)
            records = list(read_folder(sweep.folder).records)
    except FolderLocked:
        console.print("other shares of this sweep are under way; the last to end merges them")
        return mine
    missing = len(set(order) - {record.case_id for record in records})
    if missing:
        console.print(f"{missing} cases of other shares are not in {sweep.folder} yet")
    return records


def report(records: Sequence[Record], settings: Settings, folder: Path, console: Console) -> None:
    """Print the tables and write summary.csv and the plots."""
    write_summary(records, folder / SUMMARY)
    for level in settings.levels:
        if any(record.case.level == level for record in records):
            console.print(results_table(records, level, console.width))
    stages = stage_table(records)
    if stages is not None:
        console.print(stages)
    plots = write_plots(RunFolder(folder, tuple(records), known_environments(folder)))
    failed = problem_lines(records)
    for reason in failed:
        console.print(f"not measured: {reason}", style="red")
    weights = (
        "generated weights: images mean nothing, times do" if settings.weights is None else settings.weights
    )
    console.print(f"{counted(len(records), 'row')}, {len(failed)} without a result; {weights}")
    files = [RECORDS, SUMMARY, ENVIRONMENTS, *(plot.name for plot in plots)]
    remember_files(folder, [*files, PLAN, SETTINGS])
    console.print(f"written to {folder}: {', '.join(files)}")
