"""From log ratios to verdicts: the one place that decides what is FASTER, SLOWER, SAME or UNDECIDED.

`run` looks once, at the end of its rounds (`single_look`). `compare` may stop early (`evidence`) and corrects for the
number of cases in its table (`judge`). Both ask the same exact signed-rank test, and both call a difference one only
beyond a margin and beyond what identical code showed in the same rounds.

One value a round, `d_r = ln(t_B,r / t_A,r)`: a round is the unit of replication, because the samples inside it share
whatever the machine was doing. Each early look spends its own share of the error probability, so stopping early does
not raise the rate of false verdicts: the shares add up to one (Bonferroni's inequality), whatever the dependence
between looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .limits import ALPHA as ALPHA
from .limits import LOOKS as LOOKS
from .limits import MARGIN as MARGIN
from .limits import RUN_MARGIN as RUN_MARGIN
from .limits import SPENDING as SPENDING
from .statistics import (
    GeometricMean,
    Interval,
    control_floor,
    geometric_mean,
    hodges_lehmann,
    hodges_lehmann_shift,
    log_ratios,
    pairwise_differences,
    rank_sum_cdf,
    signed_rank_cdf,
    walsh_averages,
)


class Verdict(StrEnum):
    """What the interval of `ln(t_B / t_A)` says about B."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNDECIDED = "UNDECIDED"

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this verdict; 1 and 2 stay with failures and wrong usage."""
        return {"SAME": 0, "FASTER": 3, "SLOWER": 4, "UNDECIDED": 5}[self.value]


@dataclass(frozen=True)
class Evidence:
    """What the rounds of one case say. Ratios are `t_B / t_A`; p-values are two-sided and hold over all looks.

    `low` and `high` bound the ratio at `1 - ALPHA` over all looks; None for too few rounds. `floor` (of ln t)
    is what identical code showed in the same rounds, `delta` the larger of it and the margin.
    """

    ratio: float
    low: float | None
    high: float | None
    floor: float
    delta: float
    p_faster: float
    p_slower: float
    p_same: float
    rounds: int

    def verdict(self, level: float) -> Verdict:
        """The verdict of this case alone at significance `level`."""
        if self.p_faster <= level:
            return Verdict.FASTER
        if self.p_slower <= level:
            return Verdict.SLOWER
        return Verdict.SAME if self.p_same <= level else Verdict.UNDECIDED


def tail(d: ArrayLike, shift: float) -> tuple[float, float]:
    """Exact one-sided signed-rank p-values against "the shift is at most `shift`" and "... at least `shift`".

    The statistic is the number of Walsh averages on the null's side; one that equals `shift` counts against the claim
    (Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, 3rd ed., 3.1).
    """
    averages = walsh_averages(d)
    distribution = signed_rank_cdf(np.asarray(d).size)
    return (
        distribution[int((averages <= shift).sum())],
        distribution[int((averages >= shift).sum())],
    )


def spent(rounds: int) -> list[tuple[int, float]]:
    """(rounds, share of the error) of every look that `rounds` rounds allow, an unplanned last one included.

    A comparison cut short by its budget or by a kill takes its last look with the share of the look it was on its way
    to, so no share is ever used twice.
    """
    done = [(look, share) for look, share in zip(LOOKS, SPENDING, strict=True) if look <= rounds]
    if (not done or done[-1][0] < rounds) and len(done) < len(LOOKS):
        done.append((rounds, SPENDING[len(done)]))
    return done


def evidence(d: ArrayLike, floor: float = 0.0, margin: float = MARGIN) -> Evidence:
    """Evidence of one case from the log ratios of its rounds, in the order in which they were measured.

    Args:
        d: `ln(t_B / t_A)`, one value a round.
        floor: what A' against A showed in the same rounds, on the log scale.
        margin: practical equivalence as a fraction.
    """
    values = np.asarray(d, dtype=np.float64)
    return _evidence(values, max(math.log1p(margin), floor), floor, spent(values.size))


def single_look(samples_s: ArrayLike, baseline_s: ArrayLike, control_s: ArrayLike | None) -> Evidence:
    """Evidence of a run's rounds: seconds of B, A and A', looked at once, when all of them are done.

    `Evidence.verdict(ALPHA)` is FASTER exactly where the whole 95% signed-rank interval lies below -delta, SLOWER
    where it lies above delta, and SAME where it lies inside: the interval is what that test does not reject.
    """
    d = log_ratios(samples_s, baseline_s)
    floor = 0.0 if control_s is None else control_floor(control_s, baseline_s)
    return _evidence(d, max(RUN_MARGIN, floor), floor, [(d.size, 1.0)])


def _evidence(
    values: NDArray[np.float64], delta: float, floor: float, looks: list[tuple[int, float]]
) -> Evidence:
    p = {"faster": 1.0, "slower": 1.0, "same": 1.0}
    share = 1.0
    for rounds, share in looks:
        seen = values[:rounds]
        above, _ = tail(seen, delta)
        _, below = tail(seen, -delta)
        within = max(tail(seen, -delta)[0], tail(seen, delta)[1])
        for claim, one_sided in (("slower", above), ("faster", below), ("same", within)):
            p[claim] = min(p[claim], 2 * one_sided / share)
    return _assembled(hodges_lehmann(values, 1 - ALPHA * share), p, floor, delta, values.size)


def _assembled(
    interval: Interval, p: Mapping[str, float], floor: float, delta: float, rounds: int
) -> Evidence:
    bounded = math.isfinite(interval.low)
    return Evidence(
        ratio=math.exp(interval.estimate),
        low=math.exp(interval.low) if bounded else None,
        high=math.exp(interval.high) if bounded else None,
        floor=floor,
        delta=delta,
        p_faster=p["faster"],
        p_slower=p["slower"],
        p_same=p["same"],
        rounds=rounds,
    )


def paired(a_s: ArrayLike, b_s: ArrayLike, control_s: ArrayLike | None, margin: float = MARGIN) -> Evidence:
    """Evidence from seconds of A, B and A' in the same rounds; without a control the floor is the margin alone."""
    floor = 0.0 if control_s is None else control_floor(control_s, a_s)
    return evidence(log_ratios(b_s, a_s), floor, margin)


def unpaired(a: ArrayLike, b: ArrayLike, floor: float = 0.0, margin: float = MARGIN) -> Evidence:
    """Evidence on the shift of b against a, both on the log scale and of different rounds; one look."""
    delta = max(math.log1p(margin), floor)
    differences = pairwise_differences(a, b)
    distribution = rank_sum_cdf(np.asarray(a).size, np.asarray(b).size)

    def p(against: NDArray[np.bool_]) -> float:
        return 2 * distribution[int(against.sum())]

    claims = {
        "faster": p(differences >= -delta),
        "slower": p(differences <= delta),
        "same": max(p(differences <= -delta), p(differences >= delta)),
    }
    rounds = min(np.asarray(a).size, np.asarray(b).size)
    return _assembled(hodges_lehmann_shift(a, b, 1 - ALPHA), claims, floor, delta, rounds)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979): all that stay at most alpha may be claimed together."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = worst
    return adjusted


@dataclass(frozen=True)
class Judged:
    """One case of a table: its verdict and the adjusted p-value of the claim (of "different" where UNDECIDED)."""

    evidence: Evidence
    verdict: Verdict
    p_adjusted: float


def judge(found: Mapping[str, Evidence], alpha: float = ALPHA) -> dict[str, Judged]:
    """Verdicts of all cases of one table. Differences and equalities are two families, each corrected by Holm."""
    different = holm({name: min(1.0, item.p_faster, item.p_slower) for name, item in found.items()})
    same = holm({name: min(1.0, item.p_same) for name, item in found.items()})
    judged = {}
    for name, item in found.items():
        if different[name] <= alpha:
            word = Verdict.FASTER if item.p_faster < item.p_slower else Verdict.SLOWER
            judged[name] = Judged(item, word, different[name])
        elif same[name] <= alpha:
            judged[name] = Judged(item, Verdict.SAME, same[name])
        else:
            judged[name] = Judged(item, Verdict.UNDECIDED, different[name])
    return judged


@dataclass(frozen=True)
class Summary:
    """A table in one line. The mean takes every compared case, undecided ones too: leaving them out would bend it."""

    mean: GeometricMean | None
    counts: dict[Verdict, int]


def summarise(judged: Iterable[Judged]) -> Summary:
    """Geometric mean of the ratios and the number of cases of each verdict."""
    items = list(judged)
    counts = {word: sum(item.verdict is word for item in items) for word in Verdict}
    return Summary(geometric_mean([item.evidence.ratio for item in items]) if items else None, counts)


def exit_code(judged: Iterable[Judged], without_result: int = 0) -> int:
    """1: a case has no result; else 4: any SLOWER; 5: any UNDECIDED; 3: any FASTER; 0: all SAME."""
    words = {item.verdict for item in judged}
    if without_result or not words:
        return 1
    worst_first = (Verdict.SLOWER, Verdict.UNDECIDED, Verdict.FASTER, Verdict.SAME)
    return next(word.exit_code for word in worst_first if word in words)
