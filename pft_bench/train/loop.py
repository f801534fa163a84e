"""A training run in a folder: steps, the loss curve, checkpoints, and going on after an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .state import read_checkpoint, write_checkpoint
from .trainer import Trainer

CHECKPOINT, CURVE = "checkpoint.pt", "loss.jsonl"


@dataclass(frozen=True)
class Progress:
    """What is reported while a run goes on."""

    step: int
    iterations: int
    loss: float
    """Mean over the steps since the last report."""
    rate: float
    crops_per_s: float
    """High-resolution crops of all processes, over the steps since the last report."""


def fit(
    trainer: Trainer,
    folder: Path,
    run: dict[str, Any],
    *,
    resume: bool = False,
    save_every: int = 1000,
    report_every: int = 50,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> None:
    """Train to the end of the recipe, in `folder`: loss.jsonl (one line a step) and checkpoint.pt.

    `run` describes what is trained; `resume` goes on only where it equals the checkpoint's. On one machine, with the
    same number of threads and processes, the resumed curve is bit for bit the uninterrupted one. A loss that is not
    finite ends the run with an ArithmeticError and leaves the last checkpoint as it is.
    """
    curve = folder / CURVE
    if resume:
        trainer.load_state_dict(read_checkpoint(folder / CHECKPOINT, run, trainer.device))
    first = trainer.group.first
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        _cut(curve, trainer.step)
    pending: list[tuple[int, float, Tensor]] = []
    started = time.perf_counter()

    def report() -> None:
        nonlocal started
        if not pending:
            return
        losses = trainer.group.mean(torch.stack([loss for _, _, loss in pending])).tolist()
        for (step, _, _), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                raise ArithmeticError(
                    f"the loss of step {step} is {loss}; {folder / CHECKPOINT} is unchanged"
                )
        if first:
            with curve.open("a") as file:
                for (step, rate, _), loss in zip(pending, losses, strict=True):
                    file.write(json.dumps({"step": step, "loss": loss, "rate": rate}) + "\n")
            seconds = time.perf_counter() - started
            if on_progress is not None:
                speed = len(pending) * trainer.recipe.batch / seconds
                mean = sum(losses) / len(losses)
                on_progress(Progress(trainer.step, trainer.recipe.iterations, mean, pending[-1][1], speed))
        pending.clear()
        started = time.perf_counter()

    def save() -> None:
        report()
        if first:
            write_checkpoint(folder / CHECKPOINT, trainer.state_dict(), run)
            if on_checkpoint is not None:
                on_checkpoint()

    # One thread reads ahead; a step's crops depend on its number alone, so the order of work does not matter.
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(trainer.batch, trainer.step)
        while trainer.step < trainer.recipe.iterations:
            batch = coming.result()
            if trainer.step + 1 < trainer.recipe.iterations:
                coming = ahead.submit(trainer.batch, trainer.step + 1)
            step, rate = trainer.step, trainer.recipe.rate(trainer.step)
            pending.append((step, rate, trainer.train_step(batch)))
            if trainer.step == trainer.recipe.iterations or trainer.step % save_every == 0:
                save()
            elif trainer.step % report_every == 0:
                report()


def _cut(curve: Path, step: int) -> None:
    """Leave the lines before `step`: what a killed run wrote after its last checkpoint is computed again."""
    lines = curve.read_text().splitlines(keepends=True) if curve.exists() else []
    part = curve.with_name(curve.name + ".part")
    part.write_text(
        "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step)
    )
    part.replace(curve)
