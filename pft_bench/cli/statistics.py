"""`pft-bench statistics`: what attention does with a real image, and whether dropped entries are missed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..common.drafts import require_writable
from ..common.terminal import Console, Table
from . import options
from .work import at_work

if at_work(__name__):
    import pandas as pd
    import torch

    from ..harness.cases import Settings, check_inputs
    from ..harness.cases.group import thread_count
    from ..harness.cases.image import image_notes, low_resolution
    from ..harness.cases.model import make_model, twin
    from ..insight.statistics import LayerStatistics, collect
    from ..model.strips import strips
    from ..report.tables import write_csv


def statistics(
    *,
    image: Annotated[
        Path | None, options.argument("IMAGE", help="Picture, resized to --lr. Default: a bundled photo.")
    ] = None,
    weights: options.Weights = None,
    num_heads: options.NumHeads = None,
    sched: Annotated[str | None, options.one_schedule("paper")] = None,
    shapes: options.Shapes,
    windows: Annotated[int, typer.Option(min=1, help="Look at this many windows at most.")] = 4,
    threads: options.Threads = 0,
    out: Annotated[Path | None, options.file(help="CSV file for the table.")] = None,
) -> None:
    """Show what each layer keeps of its attention, and how much of what it drops later layers would have used.

    Without --weights the model is random, and the figures show the method, not the published model.
    """
    options.refuse_what_is_read(out, image, weights)
    settings = Settings.make(
        schedules=[] if sched is None else [sched],
        default_schedule="paper",
        **shapes.settings(),
        backends=["reference"],
        levels=["model"],
        device="cpu",
        threads=threads,
        image=image,
        weights=weights,
        num_heads=num_heads,
    )
    check_inputs(settings)
    if out is not None:
        require_writable(out)
    model = twin(make_model(settings, settings.schedules[0]), "auto")
    x = low_resolution(settings.lr_hw, settings.image)
    area = model.config.window_size
    height, width = (-(-side // area) * area for side in settings.lr_hw)
    with thread_count(settings.threads), torch.no_grad():
        found = collect(
            lambda: model(x), model.config.chains, strips=len(strips(1, height, width, area)), windows=windows
        )
    console = Console.wide(120)
    for note in image_notes(settings.image):
        console.print(note)
    console.print(_table(found))
    console.print(
        "kept mass: attention of the kept among the candidates, mean (5% of rows have less). missed: attention outside "
        "the candidates had nothing been dropped. came back: share of the top K of that undropped chain that had been "
        "dropped. overlap: share of the top K of the layer's own logits that were top K in its chain's layer before; "
        "by chance: K/N.",
        soft_wrap=False,
    )
    if weights is None:
        console.print(
            "random weights: these figures show the method and say nothing about the published model"
        )
    if out is not None:
        write_csv(pd.DataFrame([asdict(row) for row in found]), out)
        console.print(f"written to {out}")


def _table(found: list[LayerStatistics]) -> Table:
    names = ("step", "kept mass", "missed", "came back", "overlap", "by chance")
    table = Table("layer", numbers=names, title="Attention by layer")
    for row in found:
        table.add_row(
            f"{row.layer} {'shifted' if row.chain else ''}",
            f"{row.candidates} -> {row.kept}",
            f"{row.kept_mass:.2%} ({row.kept_mass_low:.2%})",
            f"{row.missed_mass:.3%}",
            f"{row.came_back:.2%}",
            "" if row.own_overlap is None else f"{row.own_overlap:.1%}",
            f"{row.chance:.1%}",
        )
    return table
