"""Exact, distribution-free statistics of paired log ratios, which `verdicts` turns into words.

Every comparison is made on `d_r = ln(t_B,r / t_A,r)`, one value a round, A the baseline and B the contender.
Pairing within a round cancels what both see (clock, temperature, neighbours); ranks instead of moments bear
outliers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval, in the data's unit. Too few values for the confidence: infinite ends."""

    estimate: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """`high - low`; infinite where no interval exists."""
        return self.high - self.low


@dataclass(frozen=True)
class GeometricMean:
    """Geometric mean of ratios with how many went in and how many are below, at and above 1."""

    value: float
    count: int
    below: int
    equal: int
    above: int


def _values(data: ArrayLike, what: str) -> Floats:
    values = np.asarray(data, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{what} must be a non-empty list of finite numbers, got {data!r}")
    return values


def median(data: ArrayLike) -> float:
    """Median."""
    return float(np.median(_values(data, "samples")))


def mad(data: ArrayLike) -> float:
    """Median absolute deviation from the median, unscaled (times 1.4826 it estimates a normal sigma)."""
    values = _values(data, "samples")
    return float(np.median(np.abs(values - np.median(values))))


def geometric_mean(ratios: ArrayLike) -> GeometricMean:
    """Geometric mean of positive ratios. It has no meaning without its counts, so it carries them."""
    values = _values(ratios, "ratios")
    if (values <= 0).any():
        raise ValueError("ratios must be positive")
    return GeometricMean(
        value=float(np.exp(np.log(values).mean())),
        count=values.size,
        below=int((values < 1).sum()),
        equal=int((values == 1).sum()),
        above=int((values > 1).sum()),
    )


def walsh_averages(d: ArrayLike) -> Floats:
    """All `(d_i + d_j) / 2`, i <= j, ascending: n(n+1)/2 values (Walsh 1949)."""
    values = _values(d, "differences")
    i, j = np.triu_indices(values.size)
    averages: Floats = np.sort((values[i] + values[j]) / 2)
    return averages


@lru_cache(maxsize=256)
def signed_rank_cdf(n: int) -> tuple[float, ...]:
    """P(T <= t) for t = 0 .. n(n+1)/2 of Wilcoxon's signed-rank statistic under symmetry about zero.

    Exact: T is the sum of the ranks 1..n, each in or out with probability 1/2; one convolution a rank. All
    terms are positive, so float64 loses nothing that matters (Hollander, Wolfe, Chicken: Nonparametric
    Statistical Methods, 3rd ed., section 3.1). scipy has the distribution only inside `scipy.stats.wilcoxon`;
    the tests compare the two.
    """
    probability = np.zeros(n * (n + 1) // 2 + 1)
    probability[0] = 1.0
    for rank in range(1, n + 1):
        taken = np.zeros_like(probability)
        taken[rank:] = probability[:-rank]
        probability = (probability + taken) / 2
    return tuple(np.cumsum(probability).tolist())


def signed_rank_critical(n: int, confidence: float = 0.95) -> int | None:
    """The largest t with P(T <= t) <= (1 - confidence) / 2, or None if there is none (95%: n < 6)."""
    tail = (1 - confidence) / 2
    rejected = sum(p <= tail for p in signed_rank_cdf(n))
    return rejected - 1 if rejected else None


def hodges_lehmann(d: ArrayLike, confidence: float = 0.95) -> Interval:
    """Median of the Walsh averages and the signed-rank interval that belongs to it.

    The interval's ends are the (t+1)-th smallest and largest Walsh averages, t the critical value (Hollander,
    Wolfe, Chicken, sections 3.2 and 3.3): coverage at least `confidence` for any symmetric distribution.
    """
    averages = walsh_averages(d)
    n = (math.isqrt(8 * averages.size + 1) - 1) // 2
    estimate = float(np.median(averages))
    critical = signed_rank_critical(n, confidence)
    if critical is None:
        return Interval(estimate, -math.inf, math.inf)
    return Interval(estimate, float(averages[critical]), float(averages[-1 - critical]))


@lru_cache(maxsize=256)
def rank_sum_cdf(n: int, m: int) -> tuple[float, ...]:
    """P(U <= u) for u = 0 .. n*m of the Mann-Whitney statistic of samples of n and m, under one distribution.

    Exact: the counts are the coefficients of the Gaussian binomial, a product of (1 - q^(m+i)) / (1 - q^i) over
    i = 1 .. n (Hollander, Wolfe, Chicken, section 4.1), in integers.
    """
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, n * m + 1):
            counts[u] += counts[u - i]
    total, passed, found = math.comb(n + m, n), 0, []
    for count in counts:
        passed += count
        found.append(passed / total)
    return tuple(found)


def pairwise_differences(a: ArrayLike, b: ArrayLike) -> Floats:
    """All `b_j - a_i`, ascending."""
    differences: Floats = np.sort(np.subtract.outer(_values(b, "b"), _values(a, "a")).ravel())
    return differences


def hodges_lehmann_shift(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Shift of b against a where nothing is paired: median of all differences, and the rank-sum interval.

    Hollander, Wolfe, Chicken, sections 4.2 and 4.3: coverage at least `confidence` for any two distributions that
    differ by a shift.
    """
    differences = pairwise_differences(a, b)
    estimate = float(np.median(differences))
    distribution = rank_sum_cdf(np.asarray(a).size, np.asarray(b).size)
    rejected = sum(p <= (1 - confidence) / 2 for p in distribution)
    if not rejected:
        return Interval(estimate, -math.inf, math.inf)
    return Interval(estimate, float(differences[rejected - 1]), float(differences[-rejected]))


def log_ratios(samples_s: ArrayLike, baseline_s: ArrayLike) -> Floats:
    """`d_r = ln(t_B,r / t_A,r)`, round by round; both must hold the same rounds."""
    samples, baseline = _values(samples_s, "samples"), _values(baseline_s, "baseline samples")
    if samples.size != baseline.size:
        raise ValueError(f"paired samples differ in number: {samples.size} against {baseline.size}")
    if (samples <= 0).any() or (baseline <= 0).any():
        raise ValueError("times must be positive")
    ratios: Floats = np.log(samples / baseline)
    return ratios


def control_floor(control_s: ArrayLike, baseline_s: ArrayLike) -> float:
    """The A/A' floor: the difference that identical code showed in this very run, `|HL(ln(t_A' / t_A))|`.

    What the run could not tell from nothing in its control, it must not call something in a contender.
    """
    return abs(hodges_lehmann(log_ratios(control_s, baseline_s)).estimate)
