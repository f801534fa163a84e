"""`pft-bench systems`: PFT beside the systems that its paper compares it with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console, Table
from ..common.text import counted
from . import options
from .exits import FAILURE
from .work import at_work

if at_work(__name__):
    from rich import box

    from ..apps.systems import (
        PFT_PAPER,
        SYSTEMS,
        PeersMissing,
        Size,
        System,
        size_of,
        weights_by_system,
    )
    from ..harness.cases import Group, Settings
    from ..harness.cases.mechanisms import mechanism_groups
    from ..harness.cases.systems import SystemsGroup
    from ..harness.measure.rounds import Plan
    from ..harness.record import RECORDS, Record
    from ..report.mechanisms import mechanism_rows
    from ..report.tables import bytes_text, problem_lines, seconds_text, speedup_text, step_text
    from .sweeping import Limits, measure_groups, run_folder


def systems(
    context: typer.Context,
    *,
    lr: options.Size = None,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    seed: options.Seed = 0,
    rounds: Annotated[int, typer.Option(min=6, help="Rounds of the measurement.")] = 6,
    budget: Annotated[float, typer.Option(help="Seconds of rounds after which no more are begun.")] = 120.0,
    measure: Annotated[bool, typer.Option(help="Latency and memory; without them, sizes alone.")] = True,
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILE", help="Published weights of a system, e.g. HAT=HAT_SRx2.pth; may be repeated."
        ),
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    mechanisms: Annotated[
        bool,
        typer.Option(
            "--mechanisms",
            help="Instead of whole networks, measure the attention alone in windows of 32x32: time to decide which "
            "tokens matter and time to use them, against the number of kept tokens.",
        ),
    ] = False,
    out: Annotated[Path | None, options.folder(help="Run folder. Default: runs/<date-time>-systems.")] = None,
    supervision: options.Supervision,
) -> None:
    """Show parameters and multiply-accumulates beside published ones; measure latency and memory in the same rounds.

    IPG, NLSN and DRSformer are networks of this package. SwinIR, HAT and ATD come from the package spandrel; without
    it their rows say how to install it. SST and SAT have published numbers alone. Weights are random where --weights
    gives none; with weights, the output must look like the input. A system that runs out of memory, crashes or hangs
    is a row with the reason, and the others are measured. Exit code 1 if a system that is there could not be measured.

    --resume shows a folder again, and measures the systems that it lacks, provided that nothing its rows depend on has
    changed.
    """
    if not measure:
        options.refuse(
            context,
            (
                *("lr", "device", "threads", "seed", "rounds", "budget", "out"),
                *("resume", "timeout", "memory_limit", "isolate", "weights", "mechanisms"),
            ),
            "is of measuring latency, which --no-measure leaves out",
        )
    if not budget > 0:
        raise ValueError(f"--budget must be positive seconds, got {budget}")
    folder = run_folder(out, supervision.resume, "{}-systems")
    limits = Limits.of(context, supervision)
    console = Console.wide(120)
    settings = Settings.make(
        schedules=["paper"],
        preset_name="classical_x2",
        levels=("model",),
        device=device,
        threads=threads,
        seed=seed,
        lr_hw=options.parse_size(lr),
        plan=Plan(rounds=rounds, max_rounds=max(60, rounds), budget_s=budget, seed=seed),
    )
    if mechanisms:
        options.refuse(context, ("weights",), "is of whole networks, which --mechanisms leaves out")
        groups: list[Group] = [*mechanism_groups(settings)]
    else:
        files = weights_by_system(weights, SYSTEMS)
        groups = [SystemsGroup(settings, _print_sizes(console), files)]
    if not measure:
        return
    records = measure_groups(groups, settings, folder, console, limits, resume=supervision.resume)
    if mechanisms:
        console.print(mechanism_table(records))
    else:
        height, width = settings.lr_hw
        title = f"{width}x{height} input, x2, {settings.device}, {counted(settings.threads, 'thread')}"
        console.print(time_table(records, title))
    failed = problem_lines(records)
    for reason in failed:
        console.print(f"not measured: {reason}", style="red")
    console.print(f"raw samples are in {folder / RECORDS}")
    if failed:
        raise typer.Exit(FAILURE)


def _print_sizes(console: Console) -> tuple[System, ...]:
    """Print the published numbers and ours, and the notes; the systems that can be made here."""
    sizes, here, missing = size_table(), [], ""
    for system in SYSTEMS:
        found = None
        if system.runs:
            try:
                found = size_of(system)
            except PeersMissing as error:
                missing = str(error)
            else:
                here.append(system)
        sizes.add_row(*size_row(system, found))
    console.print(sizes)
    for system in SYSTEMS:
        source = "" if system.published.source == PFT_PAPER else f" ({system.published.source})"
        if source or system.note:
            console.print(f"{system.name}{source}: {system.note}", style="dim")
    if missing:
        console.print(missing, style="yellow")
    return tuple(here)


def size_table() -> Table:
    """The head of the first table."""
    return Table(
        "system",
        numbers=("params, published", "here", "MACs, published", "here", "difference", "counted", "PSNR"),
        title="x2, output 1280x720: published numbers and ours",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        caption="MACs here: by the authors' convention where it is known (ATD, PFT, IPG), else counted. Counted: "
        "products and convolutions that PyTorch counts in one pass, padding and repeated products included. PSNR: "
        f"published, Urban100. Published: {PFT_PAPER}, unless another source is named below; - where none was found.",
    )


def size_row(system: System, size: Size | None) -> list[str]:
    """What is published of a system, and its size here, if its model is."""
    said = system.published
    found = said.psnr_db[1] if said.psnr_db else None
    return [
        system.name,
        "-" if said.parameters_m is None else f"{said.parameters_m:g} M",
        "-" if size is None else f"{size.parameters / 1e6:.2f} M",
        "-" if said.macs_t is None else f"{said.macs_t:.2f} T",
        "-" if size is None else f"{size.macs / 1e12:.3f} T",
        "-" if size is None else size.difference(system),
        "-" if size is None else f"{size.counted / 1e12:.3f} T",
        "-" if found is None else f"{found:.2f} dB",
    ]


def time_table(records: list[Record], title: str) -> Table:
    """Latency, the ratio to PFT with its interval, and memory."""
    names = ("latency", "speed-up over PFT [95%]", "memory")
    table = Table("system", "code", "check", numbers=names, title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for record in records:
        derived = record.derived
        table.add_row(
            step_text(record),
            record.case.backend,
            record.status.value,
            "-" if derived is None else seconds_text(derived.median_s),
            speedup_text(record),
            bytes_text(record.memory.peak_allocated_bytes),
        )
    return table


def mechanism_table(records: list[Record]) -> Table:
    """Seconds to decide and to use, a row for each mechanism and number of kept tokens."""
    table = Table(
        "mechanism",
        numbers=("kept", "decide", "use", "both", "of dense"),
        title="Attention alone: deciding which tokens matter, and using them",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for row in mechanism_rows(records):
        seconds = [seconds_text(value) for value in (row.decide_s, row.use_s, row.both_s)]
        table.add_row(row.name, str(row.k), *seconds, f"{row.both_s / row.dense_s:.0%}")
    return table
