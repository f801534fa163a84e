"""`pft-bench crossover`: up to which K a sparse layer is faster than a dense one, for each backend."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console, Table
from ..common.text import told
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.cases import Settings
    from ..harness.cases.group import thread_count
    from ..harness.measure.environment import environment
    from ..harness.measure.rounds import Plan
    from ..harness.record import ENVIRONMENTS, RECORDS, begin_run, record_files
    from ..insight.crossover import CROSSOVER, Crossover, crossover, write_answers


def crossover_command(
    preset: options.Preset = None,
    scale: options.Scale = None,
    lr: options.Size = None,
    backend: options.Backends = [],  # noqa: B006 - typer reads it, nobody writes it
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    threads: options.Threads = 0,
    seed: options.Seed = 0,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of each comparison.")] = 10,
    resolution: Annotated[
        float, typer.Option(help="Factor to which each end of the interval is narrowed.")
    ] = 1.1,
    out: Annotated[
        Path | None, options.folder(help="Folder of the records. Default: runs/<date-time>-crossover.")
    ] = None,
) -> None:
    """Bisect K between a sparse layer (K -> K) and a dense one (all tokens) of the same backend and shape.

    Both are checked first. The crossover lies between the last K where sparse was surely faster and the first where
    dense was. Writes a record of each comparison, with the raw samples of both, and the answers (crossover.json);
    `pft-bench verify` finds these again from the records.
    """
    if out is not None and out.exists() and (not out.is_dir() or record_files(out)):
        raise ValueError(f"--out must be a new folder, got {out}")
    settings = Settings.make(
        schedules=["dense"],
        preset_name=preset,
        scale=scale,
        backends=backend,
        levels=["layer"],
        device=device,
        dtype=dtype,
        threads=threads,
        seed=seed,
        lr_hw=options.parse_size(lr),
        plan=Plan(rounds=rounds, max_rounds=2 * rounds, min_rounds=min(6, rounds), budget_s=20.0, seed=seed),
    )
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S-crossover")
    console = Console()
    sizes = settings.shapes
    console.print(
        f"{sizes['windows']} windows, {sizes['heads']} heads, {sizes['tokens']} tokens, head_dim {sizes['head_dim']}, "
        f"{dtype}, {settings.device}, {settings.threads} threads"
    )
    names = backend or [other for other in settings.backends if other != "dense"]
    _find(settings, names, resolution, folder, console)
    console.print(f"written to {folder}: {RECORDS}, {ENVIRONMENTS}, {CROSSOVER}")


def _find(
    settings: Settings, names: Sequence[str], resolution: float, folder: Path, console: Console
) -> None:
    """Measure and print each backend's crossover; every comparison is in the folder before the next begins."""
    found: dict[str, Crossover] = {}
    with begin_run(folder) as run, thread_count(settings.threads):
        fingerprint = run.remember(environment())
        for name in names:
            try:
                found[name] = crossover(name, settings, fingerprint, run.append, resolution)
            except RuntimeError as error:  # a step failed; its record says why
                Console(stderr=True).error(told(error))
                raise typer.Exit(1) from None
            _print(console, name, found[name])
            write_answers(folder / CROSSOVER, found, resolution)


def _print(console: Console, name: str, found: Crossover) -> None:
    table = Table(title=name)
    for heading in ("K", "sparse / dense", "95% interval", "faster"):
        table.add_column(heading, justify="right")
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
