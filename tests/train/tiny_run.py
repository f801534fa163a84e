"""A training run of seconds, for tests and for the processes that they start."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch

from pft_bench.model import PFT
from pft_bench.train import Group, Photographs, Recipe, Trainer, fit, process_group

# Two blocks in windows of 4x4, selecting in the second.
TINY: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": 2,
    "num_topk": (16, 16, 5, 5),
    "window_size": 4,
    "convffn_kernel_size": 3,
    "mlp_ratio": 1,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
RECIPE = Recipe(
    iterations=6,
    batch=4,
    patch=8,
    learning_rate=1e-2,
    warmup=2,
    milestones=(4,),
    ema_decay=0.9,
    seed=3,
)


def make_trainer(
    folder: Path, recipe: Recipe = RECIPE, group: Group | None = None, backend: str = "dense"
) -> Trainer:
    torch.manual_seed(recipe.seed)
    data = Photographs(folder, 2, recipe.patch)
    return Trainer(PFT(**TINY, backend=backend), data, recipe, group)


def die_while_saving() -> None:
    """Make the next checkpoint end in the middle of its file, by SIGKILL."""

    def save(content: object, file: Path) -> None:
        Path(file).write_bytes(b"PK half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--die-after", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        trainer = make_trainer(options.data, group=group)

        def saved() -> None:
            if trainer.step == options.die_after:
                die_while_saving()

        fit(trainer, options.out, {}, save_every=2, report_every=1, on_checkpoint=saved)


if __name__ == "__main__":
    main()
