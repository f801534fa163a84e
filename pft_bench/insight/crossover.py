"""From which K on does a sparse layer no longer pay? Found by bisection, given as an interval.

At each K that the bisection asks for, the sparse step K -> K and the dense step (all tokens) of the same backend run
interleaved; its answer counts only where the whole 95% interval of their ratio lies on one side of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ..backends import get
from ..cases.layer import problem_layer
from ..check.operator import check_layer
from ..measure.candidate import Candidate
from ..measure.rounds import Plan, measure
from ..measure.statistics import hodges_lehmann, log_ratios
from ..problem import Problem

SPARSE, DENSE = "sparse", "dense"


@dataclass(frozen=True)
class Comparison:
    """Sparse against dense at one K: ratio of their times (below 1: sparse is faster) and its 95% interval."""

    k: int
    ratio: float
    low: float
    high: float
    sparse_s: tuple[float, ...]
    dense_s: tuple[float, ...]

    @property
    def side(self) -> int:
        """-1: sparse is faster, 1: dense is faster, 0: the interval has 1 in it."""
        return -1 if self.high < 1 else 1 if self.low > 1 else 0


@dataclass(frozen=True)
class Crossover:
    """`faster` is the largest K asked for at which sparse won, `slower` the smallest at which dense won.

    None where that never happened. The crossover lies between them.
    """

    faster: int | None
    slower: int | None
    comparisons: tuple[Comparison, ...]


def bisect(compare: Callable[[int], Comparison], low: int, high: int, resolution: float = 1.1) -> Crossover:
    """Where `compare` turns from -1 to 1 between `low` and `high`, each end to within the factor `resolution`.

    Two searches share their comparisons: for the last K that is surely faster and the first that is surely slower.
    Between them lies what the measurement cannot tell. Times are taken to grow with K.
    """
    if not 1 <= low < high:
        raise ValueError(f"low and high must satisfy 1 <= low < high, got {low} and {high}")
    if resolution <= 1:
        raise ValueError(f"resolution must be a factor above 1, got {resolution}")
    known: dict[int, Comparison] = {}

    def side(k: int) -> int:
        if k not in known:
            known[k] = compare(k)
        return known[k].side

    def search(belongs_below: Callable[[int], bool]) -> tuple[int | None, int | None]:
        """(last K below, first K not below)."""
        if not belongs_below(low):
            return None, low
        if belongs_below(high):
            return high, None
        a, b = low, high
        while b - a > 1 and b / a > resolution:
            middle = min(max(round(math.sqrt(a * b)), a + 1), b - 1)
            a, b = (middle, b) if belongs_below(middle) else (a, middle)
        return a, b

    faster, _ = search(lambda k: side(k) < 0)
    _, slower = search(lambda k: side(k) <= 0)
    return Crossover(faster, slower, tuple(known[k] for k in sorted(known)))


def compare_at(backend: str, shape: Problem, plan: Plan, device: str, k: int) -> Comparison:
    """Sparse K -> K against dense, both checked and then timed in interleaved rounds.

    Raises RuntimeError where one of the two fails its check or cannot run.
    """
    adapter = get(backend)
    candidates = []
    for name, entries in ((DENSE, shape.tokens), (SPARSE, k)):
        layer = problem_layer(replace(shape, candidates=entries, kept=entries), device)
        call = partial(adapter.attention_forward, layer)
        candidates.append(Candidate(name, call, lambda _, layer=layer: check_layer(adapter, layer)))  # type: ignore[misc]
    result = measure(candidates, DENSE, plan)
    for name, found in result.candidates.items():
        if found.rejection is not None:
            raise RuntimeError(
                f"{backend} {name} at K={k}: {found.rejection.status}: {found.rejection.reason}"
            )
    sparse, dense = (result.candidates[name].samples_s for name in (SPARSE, DENSE))
    interval = hodges_lehmann(log_ratios(sparse, dense))
    return Comparison(
        k, math.exp(interval.estimate), math.exp(interval.low), math.exp(interval.high), sparse, dense
    )


def crossover(
    backend: str, shape: Problem, plan: Plan, *, device: str = "cpu", resolution: float = 1.1
) -> Crossover:
    """The crossover of one backend and shape; `shape` gives windows, heads, tokens, head_dim, dtype and seed."""
    return bisect(partial(compare_at, backend, shape, plan, device), 4, shape.tokens - 1, resolution)
