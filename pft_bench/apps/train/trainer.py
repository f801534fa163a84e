"""One training step: forward, L1 loss, backward, AdamW, moving average; alone or with other processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from .misfit import misfits
from .parallel import Processes
from .photographs import Photographs
from .recipe import Recipe


class Trainer:
    """A model with its optimiser, moving average and position in the data.

    Everything random is a function of the recipe's seed, the step and the process, so that the step is all there is
    to remember: two runs, or one run that was interrupted, compute the same.
    """

    def __init__(
        self, model: nn.Module, data: Photographs, recipe: Recipe, group: Processes | None = None
    ) -> None:
        self.group = group or Processes()
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
        loss = self._loss(self._run, low, high)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average()
        self.step += 1
        return loss.detach()

    def _loss(self, module: nn.Module, low: Tensor, high: Tensor) -> Tensor:
        precision = getattr(torch, self.recipe.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            out: Tensor = module(low)
        return functional.l1_loss(out.float(), high)

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(
            list(self.ema.parameters()), list(self.model.parameters()), 1 - self.recipe.ema_decay
        )

    @torch.no_grad()
    def trouble(self, batch: tuple[Tensor, Tensor] | None = None) -> str | None:
        """Why nobody could go on from the present state, or None: a value that is not finite, or, with the crops of
        `batch`, a loss that is not. The same in every process. A step's own loss tells it one step too late.
        """
        for what, values in self._values():
            for name, value in values:
                if not value.isfinite().all():
                    return f"{what} {name} is not finite"
        if batch is None:
            return None
        low, high = (part.to(self.device, non_blocking=True) for part in batch)
        self.model.eval()
        losses = torch.stack([self._loss(module, low, high) for module in (self.model, self.ema)])
        self.model.train()
        for what, loss in zip(("weights", "moving average"), self.group.mean(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                return f"the loss of the {what} is {loss}"
        return None

    def _values(self) -> Iterator[tuple[str, Iterable[tuple[str, Tensor]]]]:
        yield "weight", self.model.named_parameters()
        yield "moving average of weight", self.ema.named_parameters()
        for name, parameter in self.model.named_parameters():
            kept = self.optimizer.state.get(parameter, {})
            yield "optimiser state of weight", ((name, value) for value in kept.values())

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
        """Go on where `state_dict` was taken.

        Raises ValueError, before anything is changed, where `state` is not that of such a model.
        """
        own = self.state_dict() | {"optimizer": {"state": self._moments(state.get("optimizer"))}}
        given = {name: state[name] for name in own if name in state}
        if isinstance(given.get("optimizer"), dict):  # its settings are the recipe's
            given["optimizer"] = {name: v for name, v in given["optimizer"].items() if name == "state"}
        found = list(islice(misfits(given, own), 3))
        if found:
            raise ValueError("; ".join(found))
        if not 0 <= state["step"] <= self.recipe.iterations:
            raise ValueError(f"['step'] must be in 0..{self.recipe.iterations}, got {state['step']}")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": given["optimizer"]["state"], "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def _moments(self, stored: object) -> dict[int, dict[str, Tensor]]:
        """What AdamW remembers of each weight, for its structure alone. A weight that had no gradient yet has none."""
        known = stored.get("state") if isinstance(stored, dict) else None
        return {
            number: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            for number, parameter in enumerate(self.model.parameters())
            if not isinstance(known, dict) or number in known
        }


def _seed(seed: int, step: int, rank: int) -> int:
    # int first: before version 2, numpy shifts no uint64 by a Python integer.
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]) >> 1
