"""The `pft-bench` program: its commands and how it ends."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from ..backends import BackendUnavailable
from ..record import FolderLocked, RecordError
from ..sweep import WorkersFailed
from . import (
    attention,
    check,
    compare,
    counters,
    crossover,
    doctor,
    evaluate,
    fit,
    flops,
    history,
    profile,
    report,
    run,
    selftest,
    statistics,
    systems,
    train,
    upscale,
    verify,
)
from .exits import USAGE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prove, measure and compare the sparse attention kernels of the Progressive Focused Transformer (PFT).",
)

# Panel of the help -> its commands.
for _panel, _commands in {
    "Measure and prove": (run.run, check.check, compare.compare, selftest.selftest),
    "Results": (report.report, verify.verify, history.history),
    "Insight": (
        flops.flops,
        fit.fit,
        counters.counters,
        crossover.crossover_command,
        statistics.statistics,
        profile.profile,
        systems.systems,
    ),
    "Use PFT": (upscale.upscale, evaluate.evaluate, attention.attention, train.train),
    "This machine": (doctor.doctor,),
}.items():
    for _command in _commands:
        app.command(_command.__name__.removesuffix("_command"), rich_help_panel=_panel)(_command)


def main() -> None:
    """Run a command; an argument that cannot be right ends it with one line and exit code 2."""
    try:
        app()
    except (
        ValueError,
        TypeError,
        BackendUnavailable,
        FolderLocked,
        RecordError,
        WorkersFailed,
        OSError,
    ) as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {error}", soft_wrap=True)
        sys.exit(USAGE)
