"""`pft-bench profile`: where the time and the memory of one forward pass go, as a trace."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..common.drafts import make_folder
from ..common.terminal import Console, Table
from . import options
from .work import at_work

if at_work(__name__):
    import torch

    from ..harness.cases import Settings, check_inputs
    from ..harness.cases.group import thread_count
    from ..harness.cases.image import image_notes, low_resolution
    from ..harness.cases.model import make_model
    from ..harness.measure.profile import Profile, marked, profiled, write_memory
    from ..insight.ranges import model_ranges
    from ..model import PFT
    from ..report.words import size


def profile(
    context: typer.Context,
    sched: Annotated[str | None, options.one_schedule("1024,256,128")] = None,
    preset: options.Preset = None,
    scale: options.Scale = None,
    lr: options.Size = None,
    image: options.Image = None,
    weights: options.Weights = None,
    num_heads: options.NumHeads = None,
    backend: Annotated[str, typer.Option(help="One backend.")] = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    threads: options.Threads = 0,
    out: Annotated[Path, options.folder(help="Folder for trace.json and memory.csv.")] = Path("profile"),
    bare: Annotated[
        bool,
        typer.Option("--bare", help="Only the NVTX ranges, no profiler of ours: to run under nsys or ncu."),
    ] = False,
) -> None:
    """Profile one warm forward pass with a range for each block, layer and stage.

    Writes trace.json (open it in ui.perfetto.dev) and memory.csv, and prints the lines for NVIDIA's profilers.
    """
    if bare:
        options.refuse(context, ("out",), "is for what --bare leaves out")
    settings = Settings.make(
        schedules=[] if sched is None else [sched],
        preset_name=preset,
        scale=scale,
        backends=[] if backend == "auto" else [backend],
        levels=["model"],
        device=device,
        dtype=dtype,
        threads=threads,
        lr_hw=options.parse_size(lr),
        image=image,
        weights=weights,
        num_heads=num_heads,
    )
    check_inputs(settings)
    made = make_model(settings, settings.schedules[0])
    model = PFT.from_config(made.config, backend=backend).to(settings.device, settings.torch_dtype).eval()
    model.load_state_dict(made.state_dict())
    x = low_resolution(settings.lr_hw, settings.image).to(settings.device, settings.torch_dtype)
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
    write_memory(found.memory, out / "memory.csv")
    _print(console, found, out)


def _whole(model: PFT, x: torch.Tensor) -> None:
    with marked("model"):
        model(x)


def _print(console: Console, found: Profile, out: Path) -> None:
    console.print(f"{out / 'trace.json'}: open it in ui.perfetto.dev or chrome://tracing")
    console.print(f"{out / 'memory.csv'}: {len(found.memory)} events, peak {size(found.peak_bytes)}")
    if found.kernels:
        table = Table(title="Kernels (CUPTI)")
        table.add_column("kernel")
        for heading in ("launches", "total us"):
            table.add_column(heading, justify="right")
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
