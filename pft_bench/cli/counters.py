"""`pft-bench counters`: what the CUDA kernels ask of a GPU, counted in the emulator, and the time that follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..common.drafts import draft, require_writable
from ..common.terminal import Console, Table, line
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.cases.settings import Settings
    from ..insight.counters import chip_named, why_not
    from ..insight.counters.emulate import module_path
    from ..insight.counters.gates import gate_of
    from ..insight.counters.instructions import why_no_instructions
    from ..insight.counters.study import PREDICTED, Study, layer_works, product_works, study
    from ..insight.counters.table import (
        COUNT_HEAD,
        SITE_HEAD,
        TIME_HEAD,
        TOTAL_HEAD,
        count_cells,
        site_rows,
        time_cells,
        total_cells,
    )

MODES = ("infer", "backward", "train")
DTYPES = ("float32", "float16", "bfloat16")


def counters(
    sched: Annotated[str, typer.Option(help="Kept entries per block; paper, light, dense, ...")] = "paper",
    preset: Annotated[str, typer.Option(help="classical or light.")] = "classical",
    scale: Annotated[int, typer.Option(help="Enlargement of the preset: 2, 3 or 4.")] = 2,
    lr: Annotated[str | None, options.size("360x640")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, float16, bfloat16. Repeatable. Default: the first two.")
    ] = None,
    mode: Annotated[str, typer.Option(help="infer, backward, or train (both).")] = "infer",
    chip: Annotated[str, typer.Option(help="h100, h200, a100 or rtx4090.")] = "h100",
    products: Annotated[
        bool, typer.Option("--products", help="The sparse products instead of the layers.")
    ] = False,
    sites: Annotated[
        bool, typer.Option("--sites", help="The source lines that cost most, launch by launch.")
    ] = False,
    out: Annotated[
        Path | None, options.file(help="Also write all counts to this JSON file, step by step.")
    ] = None,
) -> None:
    """Predict the time of the CUDA kernels on a GPU from counts made in the emulator. Not a measurement.

    Every distinct step of the schedule runs in the emulator on one window-head (large launches on a part of their
    blocks), which takes minutes for the classical model; counts and times are then scaled to the whole image.
    """
    target = chip_named(chip)
    if mode not in MODES:
        raise ValueError(f"--mode must be one of {', '.join(MODES)}, got {mode!r}")
    dtypes = dtype or ["float32", "float16"]
    for name in dtypes:
        if name not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    settings = Settings.make(
        schedules=[sched], preset_name=preset, scale=scale, backends=["dense"], device="cpu",
        lr_hw=options.parse_size(lr) or (360, 640),
    )  # fmt: skip
    reason = why_not()
    if reason is not None:
        raise ValueError(f"nothing can be counted here, {reason}")
    if out is not None:
        require_writable(out)
    core = {
        name: layer_works(settings.config, settings.schedules[0], settings.lr_hw, name, mode)
        for name in dtypes
    }
    works = [work for name in dtypes for work in (product_works(core[name]) if products else core[name])]
    console = Console.wide(240)

    def keep(known: Study) -> None:
        if out is not None:
            with draft(out) as made:
                made.write_text(json.dumps(as_json(known), indent=1) + "\n")

    with console.waiting("counting") as say:
        found = study(works, target, progress=lambda what: say(f"counting {what}"), keep=keep)
    height, width = settings.lr_hw
    title = f"{settings.preset} {width}x{height}, schedule {sched}"
    _print(console, found, title, sites)
    if not products:
        rows = []
        for name in dtypes:
            total = found.core(title, core[name])
            rows.append(total_cells(f"all {sum(core[name].values())} passes", name, total))
        _table(console, f"Attention core of {title} on {target.title}", TOTAL_HEAD, rows)
    missing = why_no_instructions()
    if missing is not None:
        console.print(f"Issue, ALU and FMA are at least what stands there: {missing}.")
    console.print(
        line((PREDICTED, "bold"), f" Doubted rates of {target.title}: {', '.join(target.doubts())}.")
    )


def as_json(found: Study) -> dict[str, object]:
    """All counts, of the blocks that ran."""
    launches = [
        {"step": row.work.title, "dtype": row.work.dtype, "blocks": row.launch.blocks,
         "blocks_run": row.launch.blocks_run} | gate_of(row.launch)
        for row in found.rows
    ]  # fmt: skip
    return {"predicted": True, "chip": found.chip.name, "launches": launches}


def _print(console: Console, found: Study, title: str, sites: bool) -> None:
    _table(console, f"Counts of one window-head, {title}", COUNT_HEAD, [count_cells(r) for r in found.rows])
    heading = f"Predicted ms of all window-heads on {found.chip.title}, by unit ('> ': at least)"
    _table(console, heading, TIME_HEAD, [time_cells(r) for r in found.rows])
    totals = [total_cells(work.title, work.dtype, total) for work, total in found.totals]
    _table(console, "Predicted, beside the floor", TOTAL_HEAD, totals)
    for row in found.rows if sites else ():
        heading = f"{row.work.title} {row.work.dtype}: {row.launch.kernel}"
        _table(console, heading, SITE_HEAD, site_rows(row.launch, module_path()))


def _table(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for name in head:
        left = name in ("step", "dtype", "kernel", "bound by", "what", "where")
        table.add_column(name, justify="left" if left else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
