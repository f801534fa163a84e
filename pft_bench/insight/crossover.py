"""From which K on does a sparse layer no longer pay? Found by bisection, given as an interval.

At each K that the bisection asks for, the sparse step K -> K and the dense step (all tokens) of the same backend run
interleaved; its answer counts only where the whole 95% interval of their ratio lies on one side of 1. Each comparison
is a record, and the answer follows from them alone: `found_again` asks the records what the bisection asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..backends import get
from ..common.drafts import draft
from ..harness.cases import Settings
from ..harness.cases.layer import problem_layer
from ..harness.check.operator import check_layer
from ..harness.measure.contender import CheckOutcome, Contender
from ..harness.measure.rounds import RoundsResult, measure
from ..harness.measure.timer import timer_for
from ..harness.record import Case, CheckEntry, Flops, Record, Status, seal, timing_of

SPARSE, DENSE = "sparse", "dense step"
CROSSOVER = "crossover.json"
SMALLEST_K = 4


@dataclass(frozen=True)
class CrossoverStep:
    """Sparse against dense at one K: ratio of their times (below 1: sparse is faster) and its 95% interval."""

    k: int
    ratio: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """-1: sparse is faster, 1: dense is faster, 0: the interval has 1 in it."""
        return -1 if self.high < 1 else 1 if self.low > 1 else 0

    @classmethod
    def of(cls, record: Record) -> CrossoverStep:
        """What a record says; too few rounds bound nothing.

        Raises:
            RuntimeError: one of the two steps failed its check or could not run.
        """
        found, k = record.derived, record.case.k
        if found is None or found.ratio is None or k is None:
            raise RuntimeError(f"{record.case.backend} at K={k}: {record.status.value}: {record.reason}")
        low = 0.0 if found.ratio_low is None else found.ratio_low
        return cls(k, found.ratio, low, math.inf if found.ratio_high is None else found.ratio_high)


@dataclass(frozen=True)
class Crossover:
    """`faster` is the largest K asked for at which sparse won, `slower` the smallest at which dense won.

    None where that never happened. The crossover lies between them.
    """

    faster: int | None
    slower: int | None
    comparisons: tuple[CrossoverStep, ...]


def bisect(
    compare: Callable[[int], CrossoverStep], low: int, high: int, resolution: float = 1.1
) -> Crossover:
    """Where `compare` turns from -1 to 1 between `low` and `high`, each end to within the factor `resolution`.

    Two searches share their comparisons: for the last K that is surely faster and the first that is surely slower.
    Between them lies what the measurement cannot tell. Times are taken to grow with K.
    """
    if not 1 <= low < high:
        raise ValueError(f"low and high must satisfy 1 <= low < high, got {low} and {high}")
    if resolution <= 1:
        raise ValueError(f"resolution must be a factor above 1, got {resolution}")
    known: dict[int, CrossoverStep] = {}

    def side(k: int) -> int:
        if k not in known:
            known[k] = compare(k)
        return known[k].side

    def search(belongs_below: Callable[[int], bool]) -> None:
        """Ask on both sides of the last K below."""
        if not belongs_below(low) or belongs_below(high):
            return
        a, b = low, high
        while b - a > 1 and b / a > resolution:
            middle = min(max(round(math.sqrt(a * b)), a + 1), b - 1)
            a, b = (middle, b) if belongs_below(middle) else (a, middle)

    search(lambda k: side(k) < 0)
    search(lambda k: side(k) <= 0)
    # Of all comparisons, not of the searches: one at an end that could not tell must not hide what others said.
    return Crossover(
        max((k for k in known if side(k) < 0), default=None),
        min((k for k in known if side(k) > 0), default=None),
        tuple(known[k] for k in sorted(known)),
    )


def case_at(settings: Settings, backend: str, k: int) -> Case:
    """The sparse step K -> K of one backend, held against its own dense step and not against the baseline of a run."""
    shapes = {**settings.shapes, "candidates": k}
    options = {"against": f"{backend}, {DENSE}"}
    found = settings.cases("layer", "progressive_attention", [backend], shapes=shapes, k=k, options=options)
    return found[backend]


def compare_at(backend: str, settings: Settings, environment: str, k: int) -> Record:
    """Sparse K -> K against dense, both checked and then timed in interleaved rounds: the sparse step's record, which
    has the dense step's samples and checks in it.
    """
    adapter, case = get(backend), case_at(settings, backend, k)
    shape = settings.problem("attention", k, k)
    device = torch.device(settings.device)
    contenders = []
    for name, problem in (
        (DENSE, replace(shape, candidates=shape.tokens, kept=shape.tokens)),
        (SPARSE, shape),
    ):
        layer = problem_layer(problem, settings.device)
        call = partial(adapter.attention_forward, layer)
        contenders.append(Contender(name, call, lambda _, layer=layer: check_layer(adapter, layer)))  # type: ignore[misc]
    flops = Flops(kernel_flops=shape.kernel_flops(), kernel_bytes=shape.kernel_bytes())
    return _record(
        case, environment, measure(contenders, DENSE, settings.plan, timer=timer_for(device)), flops
    )


def _record(case: Case, environment: str, result: RoundsResult, flops: Flops) -> Record:
    checks: list[CheckOutcome] = []
    for name, found in result.contenders.items():
        checks += [replace(CheckEntry.of(check), name=f"{name}: {check.name}") for check in found.checks]
    for name, found in result.contenders.items():
        if found.rejection is not None:
            status, reason = Status(found.rejection.status), f"{name}: {found.rejection.reason}"
            return Record.without_result(case, environment, status, reason, checks=checks, flops=flops)
    return Record.ok(case, environment, checks, timing=timing_of(result, SPARSE), flops=flops)


def crossover(
    backend: str,
    settings: Settings,
    environment: str,
    keep: Callable[[Record], None],
    resolution: float = 1.1,
) -> Crossover:
    """The crossover of one backend in the windows of `settings`; `keep` is given each record as it comes.

    Raises:
        RuntimeError: one of the two steps failed its check or could not run; its record was given to `keep`.
    """

    def compare(k: int) -> CrossoverStep:
        record = compare_at(backend, settings, environment, k)
        keep(record)
        return CrossoverStep.of(record)

    return bisect(compare, SMALLEST_K, settings.config.window_size**2 - 1, resolution)


def write_answers(path: Path, found: Mapping[str, Crossover], resolution: float) -> None:
    """Between which K each backend's crossover lies; what was measured is in the records beside."""
    answers = {name: {"faster": item.faster, "slower": item.slower} for name, item in found.items()}
    values = {"resolution": resolution, "backends": answers}
    with draft(path) as made:
        made.write_text(json.dumps({**values, "seal": seal(values)}, indent=1) + "\n")


def found_again(records: Iterable[Record], backend: str, resolution: float) -> Crossover:
    """The bisection once more, with the records for a measurement.

    Raises:
        LookupError: it asks for a K that no record has.
    """
    known, high = {}, 0
    for record in records:
        if record.case == _as_of(record, backend) and record.case.k is not None:
            known[record.case.k] = CrossoverStep.of(record)
            high = record.case.shapes["tokens"] - 1

    def compare(k: int) -> CrossoverStep:
        if k not in known:
            raise LookupError(f"the bisection of {backend} asks for K={k}, which has no record")
        return known[k]

    if not known:
        raise LookupError(f"no record is of the crossover of {backend}")
    return bisect(compare, SMALLEST_K, high, resolution)


def _as_of(record: Record, backend: str) -> Case:
    return replace(record.case, backend=backend, options={"against": f"{backend}, {DENSE}"})


def answers_that_differ(path: Path, records: Iterable[Record]) -> tuple[int, list[str]]:
    """How many answers of a `crossover.json` were found again, and a line for each that the records do not give."""
    wrong: list[str] = []
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["seal"] != seal(stored):
            wrong.append("the file was changed after it was written")
        resolution, answers = float(stored["resolution"]), dict(stored["backends"])
    except (ValueError, KeyError, TypeError) as error:
        return 0, [f"the file holds no answers: {type(error).__name__}: {error}"]
    records = list(records)
    for name, answer in answers.items():
        try:
            fresh = found_again(records, name, resolution)
        except (LookupError, RuntimeError) as error:
            wrong.append(str(error))
            continue
        expected = {"faster": fresh.faster, "slower": fresh.slower}
        if answer != expected:
            wrong.append(f"{name} is stored as {answer}, the records give {expected}")
    return 2 * len(answers), wrong
