"""`pft-bench crossover`: up to which K a sparse layer is faster than a dense one, for each backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console, Table
from ..common.text import counted, told
from . import options
from .exits import FAILURE
from .work import at_work

if at_work(__name__):
    from ..harness.cases import Settings
    from ..harness.measure.rounds import Plan
    from ..harness.record import ENVIRONMENTS, RECORDS
    from ..harness.sweep import Sweep
    from ..insight.crossover import CROSSOVER, Crossover, StepFailed, backends_of, crossover, write_answers
    from .progress import Display
    from .sweeping import Limits, going_on_later, opened, run_folder


def crossover_command(
    context: typer.Context,
    *,
    shapes: options.Shapes,
    backend: options.Backends = [],  # noqa: B006 - typer reads it, nobody writes it
    machine: options.Machine,
    seed: options.Seed = 0,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of each comparison.")] = 10,
    resolution: Annotated[
        float, typer.Option(help="Factor to which each end of the interval is narrowed.")
    ] = 1.1,
    out: Annotated[
        Path | None, options.folder(help="Folder of the records. Default: runs/<date-time>-crossover.")
    ] = None,
    supervision: options.Supervision,
) -> None:
    """Find, by bisection, the K from which a sparse layer (K -> K) is slower than a dense one (all tokens).

    Both are checked first. The crossover lies between the last K where sparse was surely faster and the first where
    dense was. Writes the records of each comparison, with the raw samples of both, and the answers (crossover.json);
    `pft-bench verify` finds these again from the records. A backend that fails, crashes or hangs at some K has a row
    with the reason and no answer; the others have theirs. Exit code 1 if one has none.

    --resume continues a folder, and shows it again, provided that nothing its rows depend on has changed; other
    backends and another --resolution may join it.
    """
    if resolution <= 1:
        raise ValueError(f"--resolution must be a factor above 1, got {resolution:g}")
    folder = run_folder(out, supervision.resume, "{}-crossover")
    limits = Limits.of(context, supervision)
    settings = Settings.make(
        schedules=["dense"],
        **shapes.settings(),
        **machine.settings(),
        backends=backend,
        levels=["layer"],
        seed=seed,
        plan=Plan(rounds=rounds, max_rounds=2 * rounds, min_rounds=min(6, rounds), budget_s=20.0, seed=seed),
    )
    console = Console()
    sizes = settings.shapes
    console.print(
        f"{counted(sizes['windows'], 'window')}, {counted(sizes['heads'], 'head')}, "
        f"{counted(sizes['tokens'], 'token')}, head_dim {sizes['head_dim']}, "
        f"{settings.dtype}, {settings.device}, {counted(settings.threads, 'thread')}"
    )
    names = backend or [other for other in settings.backends if other != "dense"]
    with limits.workers(settings.device) as workers, going_on_later(folder, console):
        failed = _find(
            Sweep(settings, folder, workers=workers), names, resolution, console, resume=supervision.resume
        )
    console.print(f"written to {folder}: {RECORDS}, {ENVIRONMENTS}, {CROSSOVER}")
    if failed:
        raise typer.Exit(FAILURE)


def _find(sweep: Sweep, names: Sequence[str], resolution: float, console: Console, *, resume: bool) -> bool:
    """Measure and print each backend's crossover, those of the folder too; whether one has no answer."""
    answers: dict[str, Crossover] = {}
    with (
        opened(sweep, [], console, resume=resume) as plan,
        Display(console) as display,
        sweep.measuring(plan.done, display) as measured,
    ):
        wanted = list(dict.fromkeys((*backends_of(plan.done.values()), *names)))
        for name in wanted:
            try:
                answers[name] = crossover(name, sweep.settings, measured, resolution)
            except StepFailed as error:  # its record says why
                Console(stderr=True).error(told(error))
                continue
            _print(console, name, answers[name])
            write_answers(sweep.folder / CROSSOVER, answers, resolution)
    return len(answers) < len(wanted)


def _print(console: Console, name: str, found: Crossover) -> None:
    table = Table(numbers=("K", "sparse / dense", "95% interval", "faster"), title=name)
    for comparison in found.comparisons:
        table.add_row(
            str(comparison.k),
            f"{comparison.ratio:.3g}",
            f"[{comparison.low:.3g}, {comparison.high:.3g}]",
            {-1: "sparse", 0: "?", 1: "dense"}[comparison.side],
        )
    console.print(table)
    if found.slower is not None and found.faster is not None and found.slower < found.faster:
        console.print(
            f"{name}: no answer: dense was surely faster at K = {found.slower} and sparse at K = {found.faster}; the "
            "machine was disturbed, measure again"
        )
    elif found.slower is None:
        console.print(f"{name}: sparse is never surely slower, up to K = {found.comparisons[-1].k}")
    elif found.faster is None:
        console.print(f"{name}: sparse is never surely faster, down to K = {found.comparisons[0].k}")
    else:
        console.print(f"{name}: the crossover lies between K = {found.faster} and {found.slower}")
