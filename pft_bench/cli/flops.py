"""`pft-bench flops`: the published counts; with --audit beside what is counted and what the algorithm must do."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common.schedule import parse_schedule
from ..common.terminal import Console, Table, line
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.record import Case
    from ..insight.counts import formula_counts, recount
    from ..insight.limits import published_limits
    from ..model import PRESETS, PUBLISHED_LR, parameter_count, published_macs

LEFT_OUT = {
    "published": "2 x the authors' multiply-accumulates. Left out: softmax, top-k, gathers, bias, padding of windows, "
    "all but one of the convolutions of 3conv; candidates of a layer are taken to be what two layers before kept.",
    "counted": "PyTorch's counter, 2 for each multiply-add. Left out: elementwise work, softmax, selection, norms. "
    "`dense` computes all N x N logits and masks them, so its count does not fall with K.",
    "kernel": "what attention must do on its candidates and kept entries. Left out: everything but attention, its "
    "exponentials and its selection.",
}


def flops(
    context: typer.Context,
    audit: Annotated[
        bool, typer.Option("--audit", help="The three counts of one model side by side.")
    ] = False,
    limits: Annotated[bool, typer.Option("--limits", help="Where the published kernels overflow.")] = False,
    preset: Annotated[str, typer.Option(help="Preset of --audit.")] = "light_x4",
    sched: Annotated[str, typer.Option(help="Schedule of --audit.")] = "paper",
    lr: Annotated[str | None, options.size("64x64")] = None,
) -> None:
    """Print parameters and published GMACs of the six presets at the published resolutions."""
    console = Console.wide(120)
    if not audit:
        options.refuse(context, ("preset", "sched", "lr"), "belongs to --audit: give it too")
    if audit:
        _audit(console, preset, sched, options.parse_size(lr) or (64, 64))
    if limits:
        _limits(console)
    if not audit and not limits:
        _published(console)


def _published(console: Console) -> None:
    names = ("preset", "low-resolution input", "output")
    table = Table(*names, numbers=("parameters", "GMAC"), title="PFT as published")
    for name, config in PRESETS.items():
        width, height = PUBLISHED_LR[config.upscale]
        table.add_row(
            name,
            f"{width}x{height}",
            f"{width * config.upscale}x{height * config.upscale}",
            f"{parameter_count(config):,}",
            f"{published_macs(config, height, width) / 1e9:.3f}",
        )
    console.print(table)
    console.print(
        "GMAC is the authors' convention (multiply-accumulates; no softmax, top-k, gathers or bias; windows without "
        "padding). What a run really computes is counted apart: `counted_flops` in its records, or --audit.",
        soft_wrap=False,
    )


def _case(preset: str, sched: str, size: tuple[int, int], backend: str) -> Case:
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = PRESETS[preset]
    schedule = parse_schedule(sched, config.depths, config.window_size**2)
    return Case(
        level="model",
        op="model",
        backend=backend,
        device="cpu",
        dtype="float32",
        mode="infer",
        threads=1,
        seed=0,
        shapes={"height": size[0], "width": size[1]},
        preset=preset,
        schedule=schedule.num_topk,
    )


def _audit(console: Console, preset: str, sched: str, size: tuple[int, int]) -> None:
    case = _case(preset, sched, size, "dense")
    counts = formula_counts(case)
    assert counts is not None
    assert counts.paper_macs is not None
    table = Table("count", numbers=["GFLOP"], title=f"{preset}, schedule {sched}, {size[0]}x{size[1]} input")
    table.add_row("published (2 x MAC)", f"{2 * counts.paper_macs / 1e9:.3f}")
    for backend in ("dense", "cpu"):
        found = recount(_case(preset, sched, size, backend))
        table.add_row(f"counted, {backend}", found if isinstance(found, str) else f"{found / 1e9:.3f}")
    table.add_row("kernel (attention alone)", f"{(counts.kernel_flops or 0) / 1e9:.3f}")
    console.print(table)
    for name, text in LEFT_OUT.items():
        console.print(line((name, "bold"), f": {text}"), soft_wrap=False)


def _limits(console: Console) -> None:
    names = ("window-heads", "input from", "published input has")
    table = Table("preset", "what overflows", numbers=names, title="Limits of the published CUDA extension")
    for name, config in PRESETS.items():
        width, height = PUBLISHED_LR[config.upscale]
        side = config.window_size
        mine = -(-width // side) * -(-height // side) * config.num_heads
        for limit in published_limits(config):
            table.add_row(
                name, limit.what, f"{limit.window_heads:,}", f"{limit.pixels / 1e6:.2f} Mpx", f"{mine:,}"
            )
    console.print(table)
    console.print(
        "The kernels here use 64-bit offsets and have neither limit; their int16 index holds windows of up to 32767 "
        "tokens, larger ones get int32.",
        soft_wrap=False,
    )
