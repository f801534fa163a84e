"""`pft-bench fit`: which image fits into how much memory, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console, Table
from ..common.text import parse_bytes
from . import options
from .exits import FAILURE
from .work import at_work

if at_work(__name__):
    from ..harness.cases.memory import FootprintGroup, predicted_process_bytes, warm_process_bytes
    from ..harness.cases.settings import Settings
    from ..harness.record import Status
    from ..model import Footprint, available_bytes, forward_footprint
    from .sweeping import Limits, measure_groups, run_folder

LARGEST_SIDE = 1 << 15


@dataclass(frozen=True)
class LargestShapes(options.Shapes):
    """Which model; without a size of the input, the largest is looked for."""

    lr: Annotated[str | None, options.size("the largest input that fits")] = None


def fit(
    context: typer.Context,
    *,
    memory: Annotated[
        str | None, typer.Option(help=f"Limit: {options.SIZES}. Default: what this machine has available.")
    ] = None,
    sched: options.Schedules = ["paper"],  # noqa: B006 - typer reads it, nobody writes it
    shapes: LargestShapes,
    aspect: Annotated[str, typer.Option(metavar="W:H", help="Shape of the largest input.")] = "16:9",
    backend: Annotated[str, typer.Option(help="cpu or dense.")] = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run --lr (else the input found) in a process of its own.")
    ] = False,
    out: Annotated[Path | None, options.folder(help="Folder for the record of --measure.")] = None,
    resume: options.Resume = False,
    timeout: options.Timeout = 1800.0,
) -> None:
    """Predict the peak memory of a process that upscales one image on a CPU, and the largest image that fits.

    --lr is height x width, as everywhere; what is printed is width x height, as pictures are described.

    With --measure, also run it and write its record. Exit code 1 if the run failed. --resume adds a record to a folder,
    or shows the one that is there, provided that nothing it depends on has changed.
    """
    if not measure:
        options.refuse(context, ("out", "resume", "timeout"), "belongs to --measure: give it too")
    folder = run_folder(out, resume)
    limits = Limits.of(context, options.Supervision(timeout=timeout))
    limit = available_bytes() if memory is None else parse_bytes(memory, "--memory")
    if backend not in ("cpu", "dense"):
        raise ValueError(f"backend must be cpu or dense, whose needs are known, got {backend!r}")
    if backend == "dense" and dtype != "float32":
        raise ValueError(f"--dtype must be float32 for backend dense, whose needs in {dtype} are not known")
    if len(sched) != 1:
        raise ValueError(f"--sched must be given once, got {len(sched)} schedules")
    settings = Settings.make(
        schedules=sched,
        **shapes.settings(),
        backends=[backend],
        device="cpu",
        dtype=dtype,
        threads=threads,
    )
    config = settings.config.with_topk(settings.schedules[0].num_topk)
    process_bytes, itemsize = warm_process_bytes(), settings.torch_dtype.itemsize

    def predict(size_hw: tuple[int, int]) -> int:
        return predicted_process_bytes(
            config, size_hw, backend, settings.threads, itemsize=itemsize, process_bytes=process_bytes
        )

    console = Console()
    largest = largest_input(predict, limit, _aspect(aspect))
    size = settings.lr_hw if shapes.lr else largest
    if size is None:
        console.print(f"no input fits {limit / 1e9:.2f} GB: one window needs {predict((1, 1)) / 1e9:.2f} GB")
        raise typer.Exit(1)
    found_at = forward_footprint(config, size, backend=backend, threads=settings.threads, itemsize=itemsize)
    what = f"{settings.preset}, {_size(size)} input (width x height), {backend}, {dtype}"
    console.print(_table(what, found_at, predict(size)))
    if shapes.lr:
        word = "fits" if predict(size) <= limit else "does not fit"
        console.print(f"{_size(size)} {word} {limit / 1e9:.2f} GB")
    found = "none"
    if largest is not None:
        found = f"{_size(largest)} (--lr {largest[0]}x{largest[1]}), {predict(largest) / 1e9:.2f} GB"
    console.print(f"largest {aspect} input within {limit / 1e9:.2f} GB: {found}")
    if measure:
        _measure(replace(settings, lr_hw=size), folder, console, limits, resume=resume)


def largest_input(
    predict: Callable[[tuple[int, int]], int], limit: int, aspect: tuple[int, int]
) -> tuple[int, int] | None:
    """Largest (height, width) of this aspect (width, height) whose predicted peak is within `limit`, or None."""

    def sized(width: int) -> tuple[int, int]:
        return max(1, round(width * aspect[1] / aspect[0])), width

    low, high = 0, 1
    while high <= LARGEST_SIDE and predict(sized(high)) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if predict(sized(middle)) <= limit else (low, middle)
    return sized(low) if low else None


def _aspect(text: str) -> tuple[int, int]:
    width, colon, height = text.partition(":")
    if not (colon and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--aspect must be W:H with positive integers, e.g. 16:9, got {text!r}")
    return int(width), int(height)


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"


def _table(what: str, found: Footprint, total: int) -> Table:
    """What is in memory at the worst moment."""
    table = Table("part", numbers=["MB"], title=f"{what}: peak at {found.moment}")
    table.add_row("process with weights", f"{(total - found.bytes) / 1e6:.0f}")
    for name, size_bytes in found.parts.items():
        table.add_row(name, f"{size_bytes / 1e6:.0f}")
    table.add_section()
    table.add_row("predicted peak of the process", f"{total / 1e6:.0f}")
    return table


def _measure(settings: Settings, folder: Path, console: Console, limits: Limits, *, resume: bool) -> None:
    group = FootprintGroup(settings)
    (case,) = group.cases.values()
    # Each row says its size.
    records = measure_groups([group], settings, folder, console, limits, resume=resume, inputs={"lr": "any"})
    (record,) = (record for record in records if record.case_id == case.case_id)
    if record.status is not Status.OK:
        console.print(f"not measured: {record.status.value}: {record.reason}", style="red")
        raise typer.Exit(FAILURE)
    measured, predicted = record.memory.peak_process_bytes, record.memory.predicted_peak_bytes
    assert measured is not None
    assert predicted is not None
    console.print(
        f"measured {measured / 1e6:.0f} MB ({record.memory.peak_process_source}), predicted {predicted / 1e6:.0f} MB: "
        f"{predicted / measured - 1:+.1%}; written to {folder}",
    )
