"""How a live comparison is measured: mirrored rounds on fresh buffers, until a look can decide.

A round runs A, B and A' (A again, on its own buffers) in random order and then in the mirrored order, ABBA
fashion, so that a drift favours nobody. Each of the six slots lasts at least `SLOT_S` and holds many short timed
blocks; the round's sample of A is the lower quartile of all blocks of its two slots. Why the quartile: a neighbour
on the same processor takes whole time slices and only ever adds time. Means of 5 ms blocks pick up every such slice;
quartiles of the very same calls scatter several times less. It is a fixed statistic of all blocks: none is dropped.

Buffers are built anew every `ROUNDS_A_LAYOUT` rounds, because identical code differs by up to a percent between two
placements of its data. Between two processes it differs more, for as long as they live, whatever is built anew inside
them: so where the sides are processes, every round takes new ones (`live.compare_versions`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

import numpy as np

from ..measure.order import CONTROL, order_of_rounds
from ..measure.statistics import median
from ..measure.verdicts import ALPHA, LOOKS, MARGIN, Evidence, Verdict, paired

SIDES = ("A", "B", CONTROL)
BLOCK_S = 0.00025
SLOT_S = 0.005
MAX_BLOCKS = 20
ROUNDS_A_LAYOUT = 12


class Sampler(Protocol):
    """One layout: A, B and A' ready to be timed."""

    def block_s(self, side: str) -> float:
        """Rough seconds of one timed block of a side."""

    def sample_s(self, side: str, blocks: int) -> list[float]:
        """Seconds a call of each of `blocks` timed blocks, after an untimed call."""


Layout = Callable[[int], AbstractContextManager[Sampler]]
"""Builds layout number n: fresh buffers (and processes) with the same content."""


@dataclass(frozen=True)
class Design:
    """When to stop. `cases` is the number of cases in the table: each is decided at its Bonferroni share at most."""

    margin: float = MARGIN
    cases: int = 1
    budget_s: float = math.inf
    seed: int = 0
    rounds_a_layout: int = ROUNDS_A_LAYOUT

    def __post_init__(self) -> None:
        if not self.margin > 0 or not self.budget_s > 0 or self.cases < 1:
            raise ValueError(f"margin, budget_s and cases must be positive, got {self}")


@dataclass(frozen=True)
class Samples:
    """Seconds a call, one value a round and side, and why there are no more."""

    a_s: tuple[float, ...]
    b_s: tuple[float, ...]
    control_s: tuple[float, ...]
    blocks: int
    stop_reason: str
    elapsed_s: float

    @property
    def medians_s(self) -> tuple[float, float]:
        """Median seconds of A and of B."""
        return median(self.a_s), median(self.b_s)

    def evidence(self, margin: float = MARGIN) -> Evidence:
        """What these rounds say."""
        return paired(self.a_s, self.b_s, self.control_s, margin)


def blocks_of(sampler: Sampler, slot_s: float = SLOT_S) -> int:
    """Blocks a slot: as many for every side, so that their quartiles mean the same; one block where calls are slow."""
    slowest = max(sampler.block_s(side) for side in SIDES)
    return min(MAX_BLOCKS, max(1, math.ceil(slot_s / slowest)))


def one_round(sampler: Sampler, orders: Sequence[Sequence[str]], blocks: int) -> dict[str, float]:
    """The lower quartile of each side's blocks over an order and its mirror image."""
    taken: Mapping[str, list[float]] = {side: [] for side in SIDES}
    for order in orders:
        for side in order:
            taken[side] += sampler.sample_s(side, blocks)
    return {side: float(np.quantile(values, 0.25)) for side, values in taken.items()}


class Pair:
    """One case under measurement: `take` adds rounds, layout by layout, until `stop_reason` says why no more."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.blocks = 0
        self.stop_reason: str | None = None
        self.elapsed_s = 0.0
        self._since = 0.0
        self._times: dict[str, list[float]] = {side: [] for side in SIDES}
        self._orders = order_of_rounds(SIDES, design.seed)

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self._times["A"])

    @contextmanager
    def clock(self) -> Iterator[None]:
        """What is done inside counts towards the budget."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.elapsed_s += time.perf_counter() - self._since

    def take(self, sampler: Sampler, on_round: Callable[[int], None] | None = None) -> None:
        """The rounds of one layout, or fewer if they decide. Call it inside of `clock`."""
        self.blocks = self.blocks or blocks_of(sampler)
        for _ in range(self.design.rounds_a_layout):
            if on_round is not None:
                on_round(self.rounds)
            found = one_round(sampler, list(islice(self._orders, 2)), self.blocks)
            for side, value in found.items():
                self._times[side].append(value)
            self.stop_reason = self._look()
            if self.stop_reason is not None:
                return

    def _look(self) -> str | None:
        done, design = self.rounds, self.design
        elapsed_s = self.elapsed_s + time.perf_counter() - self._since
        if done in LOOKS:
            found = self.samples().evidence(design.margin)
            if found.verdict(ALPHA / design.cases) is not Verdict.UNDECIDED:
                return f"decided after {done} rounds"
        if done >= LOOKS[-1]:
            return f"all {done} rounds"
        if done >= LOOKS[0] and elapsed_s * (done + 1) / done > design.budget_s:
            return f"time budget of {design.budget_s:g} s"
        return None

    def samples(self) -> Samples:
        """What was measured so far."""
        a_s, b_s, control_s = (tuple(self._times[side]) for side in SIDES)
        return Samples(a_s, b_s, control_s, self.blocks, self.stop_reason or "", self.elapsed_s)


def measure_pair(layout: Layout, design: Design, on_round: Callable[[int], None] | None = None) -> Samples:
    """Measure A against B until a look decides, the last look is done, or the budget is spent."""
    pair = Pair(design)
    for number in count():
        with pair.clock(), layout(number) as sampler:
            pair.take(sampler, on_round)
        if pair.stop_reason is not None:
            break
    return pair.samples()
