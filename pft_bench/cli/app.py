"""The `pft-bench` program: its commands and how it ends."""

from __future__ import annotations

import sys
import warnings
from copy import copy
from typing import Annotated, Any, cast

import typer

from .. import __version__
from ..apps.train import TrainingStopped
from ..backends import BackendUnavailable
from ..common.container import respect_quota
from ..common.shortage import out_of_memory
from ..common.terminal import Console, outlets
from ..common.text import in_short, told
from ..harness.compare.remote import WorkerError
from ..harness.compare.revision import BuildFailed
from ..harness.record import FolderLocked, RecordError
from ..harness.sweep import WorkersFailed
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
from .exits import INTERRUPTED, USAGE
from .loading import show_notes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prove, measure and compare the sparse attention kernels of the Progressive Focused Transformer (PFT).",
)


def _version(asked: bool) -> None:
    if asked:
        Console().print(f"pft-bench {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Prove, measure and compare the sparse attention kernels of the Progressive Focused Transformer (PFT)."""


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


def whole_program() -> Any:
    """All commands, each of which knows --version as the program itself does."""
    command: Any = typer.main.get_command(app)
    version = copy(next(param for param in command.params if param.name == "version"))
    version.expose_value = False  # the functions of the commands do not take it
    for inner in command.commands.values():
        inner.params.append(version)
    return command


USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])
"""What typer raises for a wrong command line; all its kinds say what is wrong with `format_message`."""


def main() -> None:
    """Run a command; an argument that cannot be right ends it with one line and exit code 2.

    Where nobody reads standard output or error any more (`| head -1`), the work goes on to its end, what is said is
    dropped, and the exit code is that of the work. Where either cannot be written for another reason, such as a full
    disk, the work goes on too, and the exit code is 2 unless the work has one of its own.
    """
    respect_quota()
    with outlets() as (said, told):
        try:
            code = _run(sys.argv[1:])
        except KeyboardInterrupt:
            Console(stderr=True).print("interrupted", style="yellow")
            code = INTERRUPTED
        for outlet, name in ((said, "output"), (told, "error")):
            if outlet is None:
                continue
            outlet.flush()
            if outlet.lost is not None:
                Console(stderr=True).error(f"standard {name} could not be written: {outlet.lost.strerror}")
                code = code or USAGE
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    command = whole_program()
    console = Console(stderr=True)
    try:
        with warnings.catch_warnings(), command.make_context("pft-bench", arguments) as context:
            show_notes()
            command.invoke(context)
    except typer.Exit as end:
        return int(end.exit_code)
    except USAGE_ERROR as error:
        _say_usage(console, error)
        return USAGE
    except (
        ValueError,
        TypeError,
        BackendUnavailable,
        BuildFailed,
        FolderLocked,
        RecordError,
        WorkerError,
        WorkersFailed,
        TrainingStopped,
        OSError,
    ) as error:
        console.error(told(error))
        return USAGE
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise  # a mistake of ours shows where it was made
        console.error(f"memory does not suffice: {in_short(error)}")
        return USAGE
    return 0


def _say_usage(console: Console, error: Any) -> None:
    """One line for what is wrong with the command line, and where its options are described."""
    message = error.format_message()
    if message:  # empty: a command without arguments has printed its help
        console.error(message)
        context = getattr(error, "ctx", None)
        if context is not None:
            console.print(f"{context.command_path} -h lists its options", style="dim")
