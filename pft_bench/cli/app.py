"""The `pft-bench` program: its commands and how it ends."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from copy import copy
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, cast

import typer

from .. import __version__
from ..common.messages import UserError, UserNote
from ..common.processes import end_program, stoppable
from ..common.shortage import out_of_memory
from ..common.terminal import Console, outlets
from ..common.text import in_short, told
from .exits import INTERRUPTED, USAGE
from .work import deferred, described

COMMANDS = {
    "Measure and prove": ("run", "check", "compare", "selftest"),
    "Results": ("report", "verify", "history"),
    "Insight": ("flops", "fit", "counters", "crossover", "statistics", "profile", "systems"),
    "Use PFT": ("upscale", "evaluate", "attention", "train"),
    "This machine": ("doctor",),
}
"""Panel of the help -> its commands, each in the module of its name."""
NAME = "pft-bench"
NAMES = {name for names in COMMANDS.values() for name in names}


def _version(asked: bool) -> None:
    if asked:
        Console().print(f"pft-bench {__version__}")
        raise typer.Exit


def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Prove, measure and compare the sparse attention kernels of the Progressive Focused Transformer (PFT)."""


def whole_program(only: str | None = None) -> Any:
    """All commands, or the one that is asked for; each of them knows --version as the program itself does."""
    return _made(
        {name: deferred(_module(name), name) for name in NAMES if only in (None, name)}, whole=only is None
    )


def _program_for(arguments: list[str]) -> Any:
    """As much of the program as these arguments need: reading the parameters of a command takes its time."""
    if arguments and arguments[0] in NAMES:
        return whole_program(arguments[0])
    if NAMES & {*arguments}:
        return whole_program()
    return _made({name: described(_module(name), name) for name in NAMES}, whole=True)


def _context(arguments: list[str]) -> Any:
    """The context of the command that these arguments name, or of the program itself where they begin with an option.

    A command is found without parsing the program's own options, which stand before it: typer loads pydantic for that.
    """
    made = _program_for(arguments)
    if not arguments or arguments[0].startswith("-"):
        return made.make_context(NAME, arguments)
    whole = made.context_class(made, info_name=NAME, **made.context_settings)
    name, command, rest = made.resolve_command(whole, arguments)
    return command.make_context(name, rest, parent=whole)


def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)


def _made(functions: dict[str, Callable[..., Any]], *, whole: bool) -> Any:
    """The program with these commands; `whole`: with the options that install completion."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=whole,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=program.__doc__,
    )
    app.callback()(program)
    for panel, names in COMMANDS.items():
        for name in names:
            if name in functions:
                app.command(name, rich_help_panel=panel)(functions[name])
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
    with outlets() as (said, told):
        try:
            with stoppable():
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
    end_program(code)


def _run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    console = Console(stderr=True)
    if "_PFT_BENCH_COMPLETE" in os.environ:  # a shell asks what could stand here: typer answers and exits
        whole_program().main(arguments, prog_name=NAME)
    try:
        with warnings.catch_warnings(), _context(arguments) as context:
            show_notes()
            context.command.invoke(context)
    except typer.Exit as end:
        return int(end.exit_code)
    except USAGE_ERROR as error:
        _say_usage(console, error)
        return USAGE
    except (ValueError, TypeError, UserError, OSError) as error:
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
        context = getattr(error, "ctx", None)
        console.error(message + _split_schedule(message, context))
        if context is not None:
            listed = "options" if context.parent else "commands"
            console.print(f"{context.command_path} -h lists its {listed}", style="dim")


def _split_schedule(message: str, context: Any) -> str:
    """A remark where what a command has too many of are numbers, and it was given a schedule before them."""
    extra = re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \(([\d\s,]+)\)", message)
    schedules = context.params.get("sched") if context is not None and extra else None
    if not schedules or not extra:
        return ""
    first = schedules if isinstance(schedules, str) else schedules[-1]
    whole = ",".join(part.strip(",") for part in (first, *extra[1].split()))
    return f"; a schedule has no spaces: --sched {whole}"


def show_notes() -> None:
    """From here on print each `UserNote` once, as one line; other warnings stay as they are."""
    others, said = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, UserNote):
            others(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            Console(stderr=True).print(f"note: {message}")

    warnings.showwarning = show
    warnings.simplefilter("always", UserNote)
