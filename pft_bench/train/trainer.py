"""One training step: forward, L1 loss, backward, AdamW, moving average; alone or with other processes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from .parallel import Group
from .photographs import Photographs
from .recipe import Recipe


class Trainer:
    """A model with its optimiser, moving average and position in the data.

    Everything random is a function of the recipe's seed, the step and the process, so that the step is all there is
    to remember: two runs, or one run that was interrupted, compute the same.
    """

    def __init__(
        self, model: nn.Module, data: Photographs, recipe: Recipe, group: Group | None = None
    ) -> None:
        self.group = group or Group()
        self.model, self.data, self.recipe = model.train(), data, recipe
        self.step = 0
        self.device = next(model.parameters()).device
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self._places = self.group.share(recipe.batch)
        self._run: nn.Module = model
        if self.group.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._run = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's part of the global batch of `step`, in the host's memory."""
        low, high = self.data.batch(self.recipe.seed, step, self._places)
        return (low.pin_memory(), high.pin_memory()) if self.device.type == "cuda" else (low, high)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Make one step on `batch`, that of `self.step`; the loss, a mean over this process's part of the batch."""
        low, high = (part.to(self.device, non_blocking=True) for part in batch)
        torch.manual_seed(_seed(self.recipe.seed, self.step, self.group.rank))
        for options in self.optimizer.param_groups:
            options["lr"] = self.recipe.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.l1_loss(self._predict(low).float(), high)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average()
        self.step += 1
        return loss.detach()

    def _predict(self, low: Tensor) -> Tensor:
        precision = getattr(torch, self.recipe.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            out: Tensor = self._run(low)
        return out

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(
            list(self.ema.parameters()), list(self.model.parameters()), 1 - self.recipe.ema_decay
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
