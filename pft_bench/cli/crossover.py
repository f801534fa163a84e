"""`pft-bench crossover`: up to which K a sparse layer is faster than a dense one, for each backend."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..cases import Settings
from ..cases.group import thread_count
from ..insight.crossover import Crossover, crossover
from ..measure.environment import environment
from ..measure.rounds import Plan
from . import options


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
        Path | None, typer.Option(help="JSON file for the comparisons and their raw samples.")
    ] = None,
) -> None:
    """Bisect K between a sparse layer (K -> K) and a dense one (all tokens) of the same backend and shape.

    Both are checked first. The crossover lies between the last K where sparse was surely faster and the first where
    dense was.
    """
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
    )
    shape = settings.problem("attention", settings.config.window_size**2, settings.config.window_size**2)
    plan = Plan(rounds=rounds, max_rounds=2 * rounds, min_rounds=min(6, rounds), budget_s=20.0, seed=seed)
    console = Console(highlight=False)
    console.print(
        f"{shape.windows} windows, {shape.heads} heads, {shape.tokens} tokens, head_dim {shape.head_dim}, {dtype}, "
        f"{settings.device}, {settings.threads} threads"
    )
    found: dict[str, Crossover] = {}
    with thread_count(settings.threads):
        for name in backend or [other for other in settings.backends if other != "dense"]:
            found[name] = crossover(name, shape, plan, device=settings.device, resolution=resolution)
            _print(console, name, found[name])
    if out is not None:
        written = {name: asdict(result) for name, result in found.items()}
        out.write_text(
            json.dumps(
                {"shape": shape.describe(), "environment": environment(), "backends": written}, indent=1
            )
            + "\n"
        )
        console.print(f"written to {out}", markup=False)


def _print(console: Console, name: str, found: Crossover) -> None:
    table = Table(title=name, title_justify="left", header_style="bold")
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
    if found.slower is None:
        console.print(f"{name}: sparse is never surely slower, up to K = {found.comparisons[-1].k}")
    elif found.faster is None:
        console.print(f"{name}: sparse is never surely faster, down to K = {found.comparisons[0].k}")
    else:
        console.print(f"{name}: the crossover lies between K = {found.faster} and {found.slower}")
