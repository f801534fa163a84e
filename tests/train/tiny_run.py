"""A training run of seconds, for tests and for the processes that they start."""

from __future__ import annotations

import argparse
import resource
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pft_bench.apps.train import FirstStopped, Photographs, Processes, Recipe, Trainer, fit, process_group
from pft_bench.harness.record import FolderLocked
from pft_bench.model import PFT

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
    folder: Path, recipe: Recipe = RECIPE, group: Processes | None = None, backend: str = "dense"
) -> Trainer:
    torch.manual_seed(recipe.seed)
    data = Photographs(folder, 2, recipe.patch)
    return Trainer(PFT(**TINY, backend=backend), data, recipe, group)


class Convolution(nn.Module):
    """A model of one convolution, with random numbers of its own where `dropout` asks for them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(self.conv(x), self.dropout, self.training)
        return nn.functional.pixel_shuffle(x, 2)


def convolution_trainer(folder: Path, recipe: Recipe, dropout: float = 0.0) -> Trainer:
    """For what does not depend on the model: a step of it takes a millisecond."""
    torch.manual_seed(1)
    return Trainer(Convolution(dropout), Photographs(folder, 2, recipe.patch), recipe)


def die_while_saving() -> None:
    """Make the next checkpoint end in the middle of its file: the kernel kills whoever writes beyond 4096 bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def refused(folder: Path, data: Path, group: Processes) -> str:
    """What a run in `folder` is refused with."""
    try:
        fit(make_trainer(data, group=group), folder, {})
    except (FolderLocked, FirstStopped) as error:
        return f"rank {group.rank}: {type(error).__name__}: {error}"
    return f"rank {group.rank}: not refused"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--refused-by", type=Path, help="Try this folder first, which another process holds.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        if options.refused_by is not None:
            print(refused(options.refused_by, options.data, group), flush=True)
        trainer = make_trainer(options.data, group=group)

        def saved() -> None:
            if trainer.step == options.die_after:
                die_while_saving()

        fit(trainer, options.out, {}, save_every=2, report_every=1, on_checkpoint=saved)


if __name__ == "__main__":
    main()
