"""A sweep under `torchrun`: each rank takes its share, on a device or cores of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from ...common.container import usable_cores
from .shard import Shard

PATIENCE = timedelta(days=30)
"""Ranks wait for the slowest share; torchrun itself ends all of them when one dies."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started. They talk by gloo: the measuring is done by their workers."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def shard(self) -> Shard:
        """What this rank measures."""
        return Shard(self.rank + 1, self.world)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that prints and reports."""
        return self.rank == 0

    def join(self) -> None:
        """Take one GPU and meet the others. Call it before anything has touched CUDA."""
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            visible = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
        else:
            visible = [str(index) for index in range(torch.cuda.device_count())]
        if len(visible) >= self.local_world:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[self.local_rank]
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)

    def take_cores(self, threads: int) -> bool:
        """Keep to this rank's part of the cores; False where there are too few for all ranks' threads."""
        cores = sorted(os.sched_getaffinity(0))
        each = usable_cores() // self.local_world  # of the cores that a CPU quota covers
        if each < threads:
            return False
        os.sched_setaffinity(0, cores[self.local_rank * each : (self.local_rank + 1) * each])
        return True

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        torch.distributed.barrier()

    def leave(self) -> None:
        """The end of talking."""
        torch.distributed.destroy_process_group()


def find_ranks() -> Ranks | None:
    """The ranks that torchrun's environment variables tell of; None outside of it or with one rank."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        return None
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    return ranks if ranks.world > 1 else None
