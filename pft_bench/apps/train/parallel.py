"""Processes that train one model together: what torchrun says about this one, and a group for the time of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class FirstStopped(RuntimeError):
    """The first process has stopped and told the user why; this one ends with it."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Places in the global batch that this process computes; ValueError where processes would differ."""
        if batch % self.size:
            raise ValueError(f"batch must be a multiple of the {self.size} processes, got {batch}")
        own = batch // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the processes, in every one of them."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def lead(self, action: Callable[[], T]) -> T | None:
        """Carry out `action` in the first process alone, while the others wait; its result there, None elsewhere.

        What it raises ends all of them: the others get a FirstStopped instead of waiting for one that is gone.
        """
        if self.size == 1:
            return action()
        result, error = None, None
        if self.first:
            try:
                result = action()
            except BaseException as raised:
                error = raised
        stopped = [error is not None]
        dist.broadcast_object_list(stopped, src=0)
        if error is not None:
            raise error
        if stopped[0]:
            raise FirstStopped("the first process has stopped")
        return result


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Join the other processes when started by torchrun; alone otherwise. Groups end with the context."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Processes()
        return
    group = Processes(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    if device == "cuda":
        torch.cuda.set_device(group.local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield group
    finally:
        dist.destroy_process_group()
