"""What the commands that measure have in common: a run folder, workers, what the folder holds already, the progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import typer

from ..common.terminal import Console
from ..common.text import counted, parse_bytes
from ..harness.cases import Group, Settings
from ..harness.measure.disturbance import busy_machine
from ..harness.record import Record, lock_folder, merge_shares
from ..harness.sweep import Ranks, Sweep, SweepPlan, Workers, plan_sweep
from . import options
from .exits import INTERRUPTED
from .progress import Display


@dataclass(frozen=True)
class Limits:
    """What a worker may take: --timeout and --memory-limit. Without --isolate there are no workers."""

    timeout_s: float = 1800.0
    memory_bytes: int | None = None
    isolate: bool = True

    @classmethod
    def of(cls, context: typer.Context, given: options.Supervision) -> Self:
        """As the options say; ValueError where they cannot be right."""
        if not given.timeout > 0:
            raise ValueError(f"--timeout must be positive seconds, got {given.timeout}")
        limit = None if given.memory_limit is None else parse_bytes(given.memory_limit, "--memory-limit")
        if limit is not None and not given.isolate:
            raise ValueError("--memory-limit needs a process for each case, got --no-isolate")
        if not given.isolate:
            options.refuse(context, ("timeout",), "needs a process for each case, got --no-isolate")
        return cls(given.timeout, limit, given.isolate)

    @contextmanager
    def workers(self, device: str, plugins: Sequence[str] = ()) -> Iterator[Workers | None]:
        """Workers for this device that end with the context; None without isolation."""
        if not self.isolate:
            yield None
            return
        limit = self.memory_bytes
        with Workers(
            tuple(plugins), timeout_s=self.timeout_s, memory_limit_bytes=limit, device=device
        ) as made:
            yield made


def run_folder(out: Path | None, resume: bool, name: str = "{}") -> Path:
    """--out, or a new folder in runs/, with the time in its name."""
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder to continue")
    return out or Path("runs") / name.format(datetime.now().strftime("%Y%m%d-%H%M%S"))


@contextmanager
def going_on_later(folder: Path, console: Console, what: str = "") -> Iterator[None]:
    """Ctrl-C inside says how to go on, and where what is there already, and ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        there = what or "what was measured is there"
        console.print(f"interrupted; continue with --out {folder} --resume; {there}", style="yellow")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def opened(
    sweep: Sweep, groups: Sequence[Group], console: Console, *, resume: bool, ranks: Ranks | None = None
) -> Iterator[SweepPlan]:
    """Hold the folder and plan the groups in it; what it holds already stays, if `resume` says that it is meant.

    Raises:
        ValueError: it holds records and `resume` is not given, or they depend on what is different now.
    """
    folder = sweep.folder
    with lock_folder(folder, sweep.shard.name):
        sweep.foreign.begin()
        plan = plan_sweep(groups, folder, sweep.shard)
        own = {case.case_id for group in plan.mine for case in group.cases.values()}
        found = plan.done.keys() if sweep.shard.name is None else plan.done.keys() & own
        held = [counted(len(found), "record")] if found else [sweep.beside] if sweep.has_rows_beside else []
        if held and not resume:
            raise ValueError(f"--out must be a new folder (or add --resume), got {folder} with {held[0]}")
        unsure = sweep.require_same(plan)
        if ranks is not None:
            ranks.meet()  # nobody writes before everybody has looked
        elif sweep.shard.name is None:
            with sweep.foreign.held.writing():
                merge_shares(folder)
        busy = busy_machine() if plan.left and sweep.settings.device == "cpu" else None
        for warning in (busy, *plan.warnings, unsure):
            if warning:
                console.print(warning, style="yellow")
        yield plan


def measure_groups(
    groups: Sequence[Group],
    settings: Settings,
    folder: Path,
    console: Console,
    limits: Limits,
    *,
    resume: bool,
    inputs: Mapping[str, str] | None = None,
) -> list[Record]:
    """Measure the groups in the folder, each in a process of its own; all records of the folder."""
    with limits.workers(settings.device) as workers, going_on_later(folder, console):
        sweep = Sweep(settings, folder, workers=workers, inputs=inputs or {})
        with opened(sweep, groups, console, resume=resume) as plan, Display(console, plan.left) as display:
            return [*plan.done.values(), *sweep.run(plan, display)]
