"""`pft-bench profile`: where the time and the memory of one forward pass go, as a table and as a trace."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..common.drafts import draft, make_folder
from ..common.terminal import Console, Table
from . import options
from .work import at_work

if at_work(__name__):
    import torch

    from ..harness.cases import Settings, check_inputs
    from ..harness.cases.group import thread_count
    from ..harness.cases.image import image_notes, low_resolution
    from ..harness.cases.model import make_model, twin
    from ..harness.measure.profile import Profile, marked, profiled, write_memory
    from ..harness.measure.roof import Roof, measure_roof
    from ..harness.measure.shares import StageShare, stage_shares
    from ..insight.ranges import model_ranges
    from ..model import PFT, image_dtype
    from ..report.words import size


def profile(
    context: typer.Context,
    *,
    sched: Annotated[str | None, options.one_schedule("1024,256,128")] = None,
    chosen: options.ModelRun,
    backend: Annotated[str, typer.Option(help="One backend.")] = "auto",
    machine: options.Machine,
    out: Annotated[Path, options.folder(help="Folder for trace.json, memory.csv, stages.csv.")] = Path(
        "profile"
    ),
    bare: Annotated[
        bool,
        typer.Option("--bare", help="Only the NVTX ranges, no profiler of ours: to run under nsys or ncu."),
    ] = False,
) -> None:
    """Profile one warm forward pass with a range for each block, layer and stage.

    Prints each stage's time and FLOPs, and the share of the machine's peak that it reaches; the peak is the rate of a
    large matrix product in the same dtype. Writes trace.json (open it in ui.perfetto.dev), memory.csv and stages.csv,
    and prints the lines for NVIDIA's profilers.
    """
    if bare:
        options.refuse(context, ("out",), "is for what --bare leaves out")
    settings = Settings.make(
        schedules=[] if sched is None else [sched],
        **chosen.settings(),
        **machine.settings(),
        backends=[] if backend == "auto" else [backend],
        levels=["model"],
    )
    check_inputs(settings)
    model = twin(make_model(settings, settings.schedules[0]), backend)
    x = low_resolution(settings.lr_hw, settings.image).to(settings.device, image_dtype(settings.torch_dtype))
    console = Console()
    for note in image_notes(settings.image):
        console.print(note)
    with thread_count(settings.threads), torch.no_grad():
        model(x)
        with model_ranges(model, marked):
            if bare:
                with marked("model"):
                    model(x)
                return
            make_folder(out)
            found = profiled(lambda: _whole(model, x), settings.device, out / "trace.json")
        roof = measure_roof(settings.device, settings.torch_dtype)
        shares = stage_shares(lambda: model(x), settings.device)
    write_memory(found.memory, out / "memory.csv")
    _write_shares(shares, roof, out / "stages.csv")
    console.print(_stages(shares, roof, settings.dtype))
    _print(console, found, out)


def _write_shares(shares: Sequence[StageShare], roof: Roof, path: Path) -> None:
    """The table as CSV, and in its last line the peak."""
    with draft(path) as made, made.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stage", "seconds", "flops", "share_of_peak"))
        for share in shares:
            reached = f"{share.of_peak(roof.flops_per_s):.4f}" if share.flops else ""
            writer.writerow((share.name, f"{share.seconds:.6f}", share.flops, reached))
        writer.writerow((f"peak: {roof.method}", 1, round(roof.flops_per_s), 1))


def _stages(shares: Sequence[StageShare], roof: Roof, dtype: str) -> Table:
    total_s, total = sum(share.seconds for share in shares), sum(share.flops for share in shares)
    names = ("ms", "of the time", "GFLOP", "GFLOP/s", "of the peak")
    title = f"Stages; measured peak {roof.flops_per_s / 1e9:.0f} GFLOP/s in {dtype}"
    table = Table("stage", numbers=names, title=title)
    for share in (*shares, StageShare("all", total_s, total)):
        rate = (
            f"{share.flops / 1e9:.2f}",
            f"{share.flops / share.seconds / 1e9:.1f}",
            f"{share.of_peak(roof.flops_per_s):.0%}",
        )
        cells = rate if share.flops else ("", "", "")
        table.add_row(share.name, f"{share.seconds * 1e3:.1f}", f"{share.seconds / total_s:.0%}", *cells)
    return table


def _whole(model: PFT, x: torch.Tensor) -> None:
    with marked("model"):
        model(x)


def _print(console: Console, found: Profile, out: Path) -> None:
    console.print(f"{out / 'trace.json'}: open it in ui.perfetto.dev or chrome://tracing")
    console.print(f"{out / 'memory.csv'}: {len(found.memory)} events, peak {size(found.peak_bytes)}")
    if found.kernels:
        table = Table("kernel", numbers=("launches", "total us"), title="Kernels (CUPTI)")
        for kernel in found.kernels[:20]:
            table.add_row(kernel.name[:70], str(kernel.launches), f"{kernel.total_us:.1f}")
        console.print(table)
    command = _bare(sys.argv)
    console.print()
    console.print("On a machine with an NVIDIA GPU, the same ranges under its profilers:")
    nsys, ncu = (shlex.quote(str(out / name)) for name in ("nsys", "ncu"))
    console.print(f"  nsys profile --trace=cuda,nvtx,osrt -o {nsys} {command}")
    console.print(f'  ncu --nvtx --nvtx-include "model/" --set full -o {ncu} {command}')


def _bare(arguments: Sequence[str]) -> str:
    """The command line with --bare instead of --out."""
    kept: list[str] = []
    for argument in arguments[1:]:
        if kept and kept[-1] == "--out":
            kept.pop()
        elif not argument.startswith("--out="):
            kept.append(argument)
    return shlex.join([Path(arguments[0]).name, *kept, "--bare"])
