"""`pft-bench train`: train a PFT on a folder of photographs, alone or under torchrun."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.container import check_threads
from ..common.schedule import parse_schedule
from ..common.terminal import Console
from ..common.text import counted
from . import options
from .exits import INTERRUPTED, USAGE
from .work import at_work

if at_work(__name__):
    import torch

    from ..apps.train import (
        Diverged,
        FirstStopped,
        Photographs,
        Recipe,
        Trainer,
        TrainingProgress,
        fit,
        process_group,
        require_new,
        start_as_interpolation,
        start_from,
    )
    from ..apps.train.folder import WEIGHTS
    from ..harness.cases.settings import resolve_device
    from ..model import PFT, PFTConfig, preset


def train(
    data: Annotated[
        Path,
        options.read(metavar="DIR", help="Folder of high-resolution photographs, searched to the bottom."),
    ],
    out: Annotated[
        Path, options.folder(help="Folder for checkpoint.pt, loss.jsonl and weights.safetensors.")
    ],
    preset_name: Annotated[
        str, typer.Option("--preset", help="small_x2, light_x2, classical_x4, ...")
    ] = "small_x2",
    sched: Annotated[
        str | None, typer.Option(help="Focus schedule to train with. Default: the preset's.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from the weights in this file (what has another shape starts anew: x4 from x2), or, by the "
            "word interpolation, as a bicubic enlargement. Default: random weights."
        ),
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="Steps; warm-up and decay keep their published shares.")
    ] = 500_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step, over all processes.")] = 32,
    patch: Annotated[int, typer.Option(min=1, help="Side of a crop in low-resolution pixels.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Default: 2e-4 classical, 5e-4 otherwise.")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, or mixed: bfloat16, float16.")] = "float32",
    backend: Annotated[str, typer.Option(help="Backend of the attention.")] = "auto",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and of the order of the crops.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    report_every: Annotated[int, typer.Option(min=1, help="Steps between lines of progress.")] = 50,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")] = False,
) -> None:
    """Train with the published recipe: L1, AdamW, warm-up, stepwise decay, moving average of the weights.

    The same seed gives the same losses, for one process or several that share the batch, killed and resumed or not.
    """
    if threads:
        torch.set_num_threads(check_threads(threads))
    device = resolve_device(device)
    config = preset(preset_name)
    if sched is not None:
        config = config.with_topk(parse_schedule(sched, config.depths, config.window_size**2).num_topk)
    rate: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    recipe = Recipe.published(
        light=not preset_name.startswith("classical"),
        iterations=iterations,
        batch=batch,
        patch=patch,
        precision=precision,
        seed=seed,
        **rate,
    )
    if not resume:
        require_new(out)
    photographs = Photographs(data, config.upscale, patch)
    run = {
        "model": preset_name,
        "num_topk": list(config.num_topk),
        "recipe": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recipe).items()},
        "photographs": photographs.fingerprint(),
        "init": None if init is None else Path(init).name,
    }
    console = Console()
    with process_group(device) as group:
        # A checkpoint holds what came of --init, whose file may be gone by then.
        model = _model(config, backend, None if resume else init, seed)
        place = f"cuda:{group.local_rank}" if device == "cuda" else device
        trainer = Trainer(model.to(place), photographs, recipe, group)
        started, already = 0.0, 0

        def start(lost: str | None) -> None:
            nonlocal started, already
            started, already = time.perf_counter(), trainer.step
            console.print(
                f"{preset_name}, {counted(len(photographs.paths), 'photograph')}, {counted(iterations, 'step')} of "
                f"{counted(batch, 'crop')} of "
                f"{patch}x{patch}, {precision}, {device}, {group.size} process(es) -> {out}"
            )
            for note in (*([lost] if lost is not None else []), *photographs.notes()):
                console.print(note, style="yellow", soft_wrap=True)
            if already:
                console.print(f"{already} steps are done")

        def show(progress: TrainingProgress) -> None:
            console.print(
                f"step {progress.step:>7} of {progress.iterations}  loss {progress.loss:.5f}  "
                f"lr {progress.rate:.2e}  {progress.crops_per_s:.1f} crops/s"
            )

        try:
            fit(
                trainer,
                out,
                run,
                resume=resume,
                save_every=save_every,
                report_every=report_every,
                notes={"model": preset_name, "seed": str(seed)},
                on_start=start,
                on_progress=show,
            )
        except KeyboardInterrupt as stop:
            if group.first:
                console.print(
                    ": ".join(filter(None, ("interrupted", str(stop)))), style="yellow", soft_wrap=True
                )
            raise typer.Exit(INTERRUPTED) from None
        except (FirstStopped, Diverged):
            if group.first:
                raise
            raise typer.Exit(USAGE) from None  # the first process says why
        if group.first:
            steps, seconds = iterations - already, time.perf_counter() - started
            done = f"{steps} steps in {seconds:.0f} s" if steps else "no step was left to do"
            console.print(f"{done}; the moving average is in {out / WEIGHTS}", soft_wrap=True)


def _model(config: PFTConfig, backend: str, init: str | None, seed: int) -> PFT:
    torch.manual_seed(seed)
    model = PFT.from_config(config, backend)
    if init == "interpolation":
        start_as_interpolation(model)
    elif init is not None:
        start_from(model, Path(init))
    return model
