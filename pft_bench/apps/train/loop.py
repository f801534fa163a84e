"""A training run in a folder: steps, the loss curve, checkpoints, and going on after an interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.drafts import named
from ...common.messages import UserError
from ...common.shortage import out_of_memory
from ...harness.record import lock_folder
from .folder import TrainingFolder
from .trainer import Trainer


class TrainingStopped(UserError, RuntimeError):
    """Training ended before its last step. The message says at which step, why, and what is on the disk."""


class Diverged(TrainingStopped, ArithmeticError):
    """A loss or a weight is not finite."""


@dataclass(frozen=True)
class TrainingProgress:
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
    notes: dict[str, str] | None = None,
    on_start: Callable[[str | None], None] | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> None:
    """Train to the end of the recipe, in `folder`: loss.jsonl (one line a step), checkpoint.pt and
    weights.safetensors (the moving average at the checkpoint, with `notes` in its header).

    `run` describes what is trained; `resume` goes on only where it equals the checkpoint's. On one machine, with the
    same number of threads and processes, the resumed curve is bit for bit the uninterrupted one. A checkpoint is
    written only of a state that training can go on from. `on_start` is called before the first step, with a sentence
    where losses that the run once wrote are gone. An interrupt is raised again with a text that says where to go on.

    Raises:
        ValueError: the folder holds another run, a damaged one, or none to continue (CheckpointError, CurveError).
        FolderLocked: another process is training in the folder.
        Diverged: a loss or a weight is not finite; the last good checkpoint stays.
        TrainingStopped: the disk or the memory is full, or a picture cannot be read any more.
        FirstStopped: one of these was raised in the first process of several.
    """
    group = trainer.group
    files = TrainingFolder(folder, run, notes or {})
    with ExitStack() as stack:
        group.lead(lambda: _lock(stack, folder))
        lost = _start(trainer, files, resume=resume)
        if on_start is not None and group.first:
            on_start(lost)
        stack.enter_context(_told(trainer, files))
        report = _Report(trainer, files, on_progress)
        for batch in stack.enter_context(closing(_steps(trainer, report))):
            if trainer.step == trainer.recipe.iterations or trainer.step % save_every == 0:
                report.write()
                _require_sound(trainer, files, batch)
                group.lead(lambda: files.save(trainer))
                if on_checkpoint is not None and group.first:
                    on_checkpoint()
            elif trainer.step % report_every == 0:
                report.write()


def _lock(stack: ExitStack, folder: Path) -> None:
    with named(folder):
        stack.enter_context(lock_folder(folder))


def _start(trainer: Trainer, files: TrainingFolder, *, resume: bool) -> str | None:
    if not resume:
        trainer.group.lead(files.begin)
        return None
    # The first process looks first: what it refuses is told once.
    state = trainer.group.lead(lambda: files.read(trainer))
    if not trainer.group.first:
        files.read(trainer)
    return trainer.group.lead(lambda: None if state is None else files.resume(trainer, state))


def _steps(trainer: Trainer, report: _Report) -> Generator[tuple[Tensor, Tensor]]:
    """Make the steps that are left, yielding the crops of each when it is done."""
    # One thread reads ahead; a step's crops depend on its number alone, so the order of work does not matter.
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(trainer.batch, trainer.step)
        while trainer.step < trainer.recipe.iterations:
            batch = coming.result()
            if trainer.step + 1 < trainer.recipe.iterations:
                coming = ahead.submit(trainer.batch, trainer.step + 1)
            report.add(trainer.step, trainer.train_step(batch))
            yield batch


class _Report:
    """Losses since the last report: they stay where they were computed, because reading one waits for its step."""

    def __init__(
        self, trainer: Trainer, files: TrainingFolder, on_progress: Callable[[TrainingProgress], None] | None
    ) -> None:
        self._trainer, self._files, self._on_progress = trainer, files, on_progress
        self._pending: list[tuple[int, Tensor]] = []
        self._started = time.perf_counter()

    def add(self, step: int, loss: Tensor) -> None:
        self._pending.append((step, loss))

    def write(self) -> None:
        """Append the losses to the curve and tell their mean. Raises Diverged at the first that is not finite, when
        those before it have been written.
        """
        if not self._pending:
            return
        trainer = self._trainer
        losses = trainer.group.mean(torch.stack([loss for _, loss in self._pending])).tolist()
        steps = [
            (step, trainer.recipe.rate(step), loss)
            for (step, _), loss in zip(self._pending, losses, strict=True)
        ]
        self._pending.clear()
        bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        trainer.group.lead(lambda: self._files.append(steps[:bad]))
        if bad is not None:
            step, _, loss = steps[bad]
            raise _diverged(f"the loss of step {step} is {loss}", self._files)
        seconds = time.perf_counter() - self._started
        if self._on_progress is not None and trainer.group.first:
            mean, speed = sum(losses) / len(losses), len(steps) * trainer.recipe.batch / seconds
            rate = steps[-1][1]
            self._on_progress(TrainingProgress(trainer.step, trainer.recipe.iterations, mean, rate, speed))
        self._started = time.perf_counter()


def _require_sound(trainer: Trainer, files: TrainingFolder, batch: tuple[Tensor, Tensor]) -> None:
    why = trainer.trouble(batch)
    if why is not None:
        raise _diverged(f"after step {trainer.step - 1} {why}", files)


def _diverged(what: str, files: TrainingFolder) -> Diverged:
    if files.saved is None:
        return Diverged(f"{what}; {files.told()}; begin again with a smaller --lr")
    return Diverged(
        f"{what}; {files.told()}. --resume would compute the same again: begin a new run with a smaller --lr, from "
        f"these weights with --init {files.weights}"
    )


@contextmanager
def _told(trainer: Trainer, files: TrainingFolder) -> Iterator[None]:
    """Whatever ends the steps early says at which of them, and what is on the disk."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped after {trainer.step} steps; {_way_on(files)}") from error
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise  # TrainingStopped has said it, and a mistake of ours shows where it was made
        what = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None:
            what = f"{error.filename}: {error.strerror}"
        raise TrainingStopped(f"stopped after {trainer.step} steps: {what}; {_way_on(files)}") from error


def _way_on(files: TrainingFolder) -> str:
    return files.told() + ("" if files.saved is None else ": continue with --resume")
