"""`pft-bench run`: check, measure and report focus schedules."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..cases import Group, Settings, check_inputs, left_out, plan_groups
from ..cases.group import thread_count
from ..measure.environment import environment
from ..measure.roof import Roof, measure_roof
from ..measure.rounds import Plan
from ..measure.rounds import Progress as Rounds
from ..record import Record, RecordWriter, Status, lock_folder, read_records, remember_environment
from ..report import problem_lines, results_table, stage_table, write_plots, write_summary
from . import options


def run(
    sched: options.Schedules = ["1024,256,128"],  # noqa: B006 - typer reads it, nobody writes it
    preset: options.Preset = None,
    scale: options.Scale = None,
    lr: options.Size = None,
    image: options.Image = None,
    weights: options.Weights = None,
    backend: options.Backends = [],  # noqa: B006
    level: Annotated[
        list[str], typer.Option(help="op, layer or model. Repeatable. Default: layer and model.")
    ] = ["layer", "model"],  # noqa: B006
    mode: options.Mode = "infer",
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    threads: options.Threads = 0,
    seed: options.Seed = 0,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of each case.")] = 20,
    budget: Annotated[float, typer.Option(help="Seconds that one case may take, checks apart.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<date-time>.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the folder given by --out.")] = False,
) -> None:
    """Check each schedule against masked dense attention, then measure latency, memory and FLOPs.

    Writes records.jsonl (raw samples), summary.csv, environment.json and plots to the run folder. Exit code 1 if any
    row failed its check or could not be measured.
    """
    if not budget > 0:
        raise ValueError(f"--budget must be positive seconds, got {budget}")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    settings = Settings.make(
        schedules=sched,
        preset_name=preset,
        scale=scale,
        backends=backend,
        levels=level,
        device=device,
        dtype=dtype,
        mode=mode,
        threads=threads,
        seed=seed,
        lr_hw=options.parse_size(lr),
        image=image,
        weights=weights,
        plan=Plan(rounds=rounds, max_rounds=max(60, rounds), budget_s=budget, seed=seed),
    )
    check_inputs(settings)
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    console = make_console()
    with lock_folder(folder):
        records = execute(settings, folder, console, resume=resume)
    report(records, settings, folder, console)
    if any(record.status is not Status.OK for record in records):
        raise typer.Exit(1)


def make_console() -> Console:
    """The terminal, or, for a pipe or a file, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))


def execute(settings: Settings, folder: Path, console: Console, *, resume: bool) -> list[Record]:
    """Run all groups, appending each record as it comes; with `resume`, what the folder holds is kept."""
    path = folder / "records.jsonl"
    done = list(read_records(path).records) if path.exists() else []
    if done and not resume:
        raise ValueError(
            f"--out must be a new folder (or add --resume), got {folder} with {len(done)} records"
        )
    groups = plan_groups(settings)
    known = {record.case_id for record in done}
    left = [group for group in groups if not all(case.case_id in known for case in group.cases.values())]
    with thread_count(settings.threads):
        roof = measure_roof(settings.device, settings.torch_dtype)
    found = environment()
    found["now"]["roof"] = vars(roof)
    fingerprint = remember_environment(folder, found)
    console.print(
        f"[bold]{settings.preset}[/], {settings.lr_hw[0]}x{settings.lr_hw[1]} input, {settings.mode}, "
        f"{settings.dtype}, {settings.device}, {settings.threads} threads; "
        f"backends {', '.join(settings.backends)}; {len(left)} groups to run -> {folder}"
    )
    for name, reason in left_out(settings):
        console.print(f"{name} left out: {reason}", highlight=False, markup=False)
    with RecordWriter(path) as writer, _Display(console, left) as display:
        for group in left:
            for record in _run_group(group, fingerprint, display):
                if record.case_id not in known:
                    writer.append(record)
                    done.append(record)
    return done


def _run_group(group: Group, fingerprint: str, display: _Display) -> Sequence[Record]:
    display.start(group)
    try:
        records = group.run(fingerprint, display.rounds).records
    except Exception as error:  # one case that cannot be set up must not end the sweep
        reason = f"{type(error).__name__}: {error}"
        memory = isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate" in reason
        status = Status.OOM if memory else Status.ERROR
        records = [Record.without_result(case, fingerprint, status, reason) for case in group.cases.values()]
    display.finish(group)
    return records


class _Display:
    """Live progress: which case, which round, and about how long the rest takes."""

    def __init__(self, console: Console, groups: Sequence[Group]) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._total = sum(group.cost for group in groups)
        self._task = self._bar.add_task("starting", total=self._total, left="")
        self._done = 0.0
        self._started = time.perf_counter()
        self._group: Group | None = None

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update(self._task, description="done", left="")
        self._bar.stop()

    def start(self, group: Group) -> None:
        """Show that `group` is being checked."""
        self._group = group
        self._bar.update(
            self._task, description=f"{group.title}: checking", completed=self._done, left=self._left(0)
        )

    def rounds(self, progress: Rounds) -> None:
        """Show the round and the estimate of the remaining time."""
        assert self._group is not None
        share = min(progress.rounds / progress.planned, 1.0) * self._group.cost
        self._bar.update(
            self._task,
            description=f"{self._group.title}: round {progress.rounds + 1}/{progress.planned}",
            completed=self._done + share,
            left=self._left(share),
        )

    def finish(self, group: Group) -> None:
        """Count `group` as done."""
        self._done += group.cost
        self._bar.update(self._task, completed=self._done)

    def _left(self, share: float) -> str:
        done = self._done + share
        if done <= 0:
            return ""
        seconds = (time.perf_counter() - self._started) / done * (self._total - done)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def report(records: Sequence[Record], settings: Settings, folder: Path, console: Console) -> None:
    """Print the tables and write summary.csv and the plots."""
    write_summary(records, folder / "summary.csv")
    for level in settings.levels:
        if any(record.case.level == level for record in records):
            console.print(results_table(records, level, console.width))
    stages = stage_table(records)
    if stages is not None:
        console.print(stages)
    roof = read_roof(folder)
    plots = write_plots(records, folder, roof)
    failed = problem_lines(records)
    for line in failed:
        console.print("not measured:", line, style="red", highlight=False, markup=False)
    weights = (
        "generated weights: images mean nothing, times do" if settings.weights is None else settings.weights
    )
    console.print(f"{len(records)} rows, {len(failed)} without a result; {weights}")
    files = ["records.jsonl", "summary.csv", "environment.json", *(plot.name for plot in plots)]
    console.print(f"written to {folder}: {', '.join(files)}", markup=False)


def read_roof(folder: Path) -> Roof | None:
    """The roof that was measured when the folder's last environment was recorded."""
    path = folder / "environment.json"
    if not path.exists():
        return None
    known = list(json.loads(path.read_text()).values())
    found = known[-1].get("now", {}).get("roof") if known else None
    return None if found is None else Roof(**found)
