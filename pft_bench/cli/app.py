"""The `pft-bench` program: its commands and how it ends."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from ..backends import BackendUnavailable
from ..record import FolderLocked, RecordError
from ..sweep import WorkersFailed
from . import check, compare, doctor, flops, history, report, run, selftest, systems, train, upscale
from .exits import USAGE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prove, measure and compare the sparse attention kernels of the Progressive Focused Transformer (PFT).",
)
app.command("run")(run.run)
app.command("check")(check.check)
app.command("flops")(flops.flops)
app.command("doctor")(doctor.doctor)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("history")(history.history)
app.command("selftest")(selftest.selftest)
app.command("systems")(systems.systems)
app.command("report")(report.report)
app.command("upscale")(upscale.upscale)


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
