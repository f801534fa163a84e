"""What each stage of a model has of the machine: its time, its FLOPs, and their rate beside the machine's best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...common import stages
from .flops import flop_counter

FUSED = "pft_bench.progressive_attention"
PHASES = ("logits", "select", "av")
"""Stages of one fused kernel, which PyTorch's counter sees as one op: together they are the stage `attention`."""


@dataclass(frozen=True)
class StageShare:
    """Seconds and counted FLOPs of one stage; a stage without products (norms, copies) has none."""

    name: str
    seconds: float
    flops: int

    def of_peak(self, flops_per_s: float) -> float:
        """Its rate as a part of that."""
        return self.flops / self.seconds / flops_per_s if self.seconds else 0.0


def stage_shares(call: Callable[[], object], device: torch.device | str, runs: int = 3) -> list[StageShare]:
    """The stages of `call()`, in the fastest of some warm runs, the longest first."""
    device = torch.device(device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    fastest: dict[str, float] = {}
    for _ in range(runs):
        with stages.record(synchronize) as times:
            call()
        if not fastest or sum(times.seconds.values()) < sum(fastest.values()):
            fastest = times.seconds
    seconds: Counter[str] = Counter()
    for name, value in fastest.items():
        seconds["attention" if name in PHASES else name] += value  # type: ignore[assignment]
    flops = stage_flops(call)
    found = [StageShare(name, value, flops.get(name, 0)) for name, value in seconds.items()]
    return sorted(found, key=lambda share: -share.seconds)


def stage_flops(call: Callable[[], object]) -> dict[str, int]:
    """FLOPs of `call()` by stage, as `counted_flops` counts them; those outside of all stages are `other`."""
    found: Counter[str] = Counter()
    inside, counted = ["other"], Counter[str]()

    with flop_counter() as counter:

        def settle() -> None:
            """What was counted since the last time belongs to the stage that is open.

            An op is counted when it ends: the one that is a stage itself, when that is closed already.
            """
            for op, total in counter.get_flop_counts().get("Global", {}).items():
                name = "attention" if str(op) == FUSED else inside[-1]
                found[name] += int(total) - counted[str(op)]
                counted[str(op)] = int(total)

        @contextmanager
        def open_stage(name: str) -> Iterator[None]:
            settle()
            inside.append(name)
            try:
                yield
            finally:
                settle()
                inside.pop()

        with stages.annotate(open_stage):
            call()
        settle()
    return dict(found)
