"""From which K on does a sparse layer no longer pay? Found by bisection, given as an interval.

At each K that the bisection asks for, the sparse step K -> K and the dense step (all tokens) of the same backend run
interleaved (a `StepsGroup`). The sparse step counts as faster or slower where its verdict says so. The answer follows
from the records of the sparse steps alone: `found_again` asks them what the bisection asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.drafts import draft
from ..harness.cases import Settings, StepsGroup
from ..harness.cases.joined import DENSE, SPARSE
from ..harness.measure.verdicts import Verdict
from ..harness.record import Case, Record, Status, seal

CROSSOVER = "crossover.json"
VERDICT = "verdict"
"""What decided at each K, in `crossover.json`; older ones do not say it: there it was the interval alone."""
SMALLEST_K = 4


class StepFailed(RuntimeError):
    """A comparison without a result: one of its two steps failed its check or could not run."""


@dataclass(frozen=True)
class CrossoverStep:
    """Sparse against dense at one K: ratio of their times (below 1: sparse is faster), its 95% interval, the verdict.

    Without a verdict the interval alone decides, as it did before the margin and the A/A control were asked too.
    """

    k: int
    ratio: float
    low: float
    high: float
    verdict: Verdict | None = None

    @property
    def side(self) -> int:
        """-1: sparse is faster, 1: dense is faster, 0: neither for sure."""
        if self.verdict is not None:
            return {Verdict.FASTER: -1, Verdict.SLOWER: 1}.get(self.verdict, 0)
        return -1 if self.high < 1 else 1 if self.low > 1 else 0

    @classmethod
    def of(cls, record: Record) -> CrossoverStep:
        """What the record of a sparse step says; too few rounds bound nothing.

        Raises:
            StepFailed: it, or the dense step that it is held against, failed its check or could not run.
        """
        found, k = record.derived, record.case.k
        if found is None or found.ratio is None or k is None:
            reason = record.reason or f"its {DENSE} has no time"
            raise StepFailed(f"{record.case.backend} at K={k}: {record.status.value}: {reason}")
        low = 0.0 if found.ratio_low is None else found.ratio_low
        high = math.inf if found.ratio_high is None else found.ratio_high
        return cls(k, found.ratio, low, high, found.verdict)


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


def crossover(
    backend: str,
    settings: Settings,
    measured: Callable[[StepsGroup], Sequence[Record]],
    resolution: float = 1.1,
) -> Crossover:
    """The crossover of one backend in the windows of `settings`; `measured` gives the records of a comparison.

    Raises:
        StepFailed: one of the two steps failed its check or could not run.
    """

    def compare(k: int) -> CrossoverStep:
        records = measured(StepsGroup(settings, backend, k))
        for name, record in zip((DENSE, SPARSE), records, strict=True):
            if record.status is not Status.OK:
                raise StepFailed(f"{backend} at K={k}: {record.status.value}: {name}: {record.reason}")
        return CrossoverStep.of(records[-1])

    return bisect(compare, SMALLEST_K, settings.config.window_size**2 - 1, resolution)


def write_answers(path: Path, found: Mapping[str, Crossover], resolution: float) -> None:
    """Between which K each backend's crossover lies; what was measured is in the records beside."""
    answers = {name: {"faster": item.faster, "slower": item.slower} for name, item in found.items()}
    values = {"rule": VERDICT, "resolution": resolution, "backends": answers}
    with draft(path) as made:
        made.write_text(json.dumps({**values, "seal": seal(values)}, indent=1) + "\n")


def backends_of(records: Iterable[Record]) -> list[str]:
    """All whose crossover the records are of."""
    found = (record.case.backend for record in records if record.case == _as_of(record, record.case.backend))
    return list(dict.fromkeys(found))


def found_again(
    records: Iterable[Record], backend: str, resolution: float, rule: str | None = VERDICT
) -> Crossover:
    """The bisection once more, with the records for a measurement; without a `rule`, the intervals alone decide.

    Raises:
        LookupError: it asks for a K that no record has.
    """
    known, high = {}, 0
    for record in records:
        if record.case == _as_of(record, backend) and record.case.k is not None:
            step = CrossoverStep.of(record)
            known[record.case.k] = step if rule == VERDICT else replace(step, verdict=None)
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
        resolution, answers, rule = float(stored["resolution"]), dict(stored["backends"]), stored.get("rule")
    except (ValueError, KeyError, TypeError) as error:
        return 0, [f"the file holds no answers: {type(error).__name__}: {error}"]
    records = list(records)
    for name, answer in answers.items():
        try:
            fresh = found_again(records, name, resolution, rule)
        except (LookupError, StepFailed) as error:
            wrong.append(str(error))
            continue
        expected = {"faster": fresh.faster, "slower": fresh.slower}
        if answer != expected:
            wrong.append(f"{name} is stored as {answer}, the records give {expected}")
    return 2 * len(answers), wrong
