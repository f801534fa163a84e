"""Processes that train one model together: what torchrun says about this one, and a group for the time of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Group:
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


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the other processes when started by torchrun; alone otherwise. Groups end with the context."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Group()
        return
    group = Group(
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
