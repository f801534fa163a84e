"""The `pft-bench` program: its commands and how it ends."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from ..backends import BackendUnavailable
from ..record import FolderLocked, RecordError
from . import check, compare, doctor, flops, history, run, selftest, train

FAILURE, USAGE = 1, 2
"""Exit codes: something was measured and found wrong; the command cannot be carried out as given."""

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


def main() -> None:
    """Run a command; an argument that cannot be right ends it with one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, BackendUnavailable, FolderLocked, RecordError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {error}", soft_wrap=True)
        sys.exit(USAGE)
