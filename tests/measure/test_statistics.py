"""The statistics against published tables and scipy, and the verdict's error rates on simulated noise."""

import math

import numpy as np
import pytest
from scipy import stats

from pft_bench.harness.measure.statistics import (
    Interval,
    Verdict,
    classify,
    compare,
    control_floor,
    geometric_mean,
    hodges_lehmann,
    log_ratios,
    mad,
    median,
    signed_rank_cdf,
    signed_rank_critical,
    verdict,
    walsh_averages,
)

# Wilcoxon's critical values, two-sided 5%: F. Wilcoxon, R. A. Wilcox, "Some Rapid Approximate Statistical
# Procedures" (1964), table 2, reprinted in most textbooks of nonparametric statistics.
PUBLISHED = {
    **{6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 11: 10, 12: 13, 13: 17, 14: 21, 15: 25, 16: 29, 17: 34, 18: 40},
    **{19: 46, 20: 52, 21: 58, 22: 65, 23: 73, 24: 81, 25: 89},
}


@pytest.mark.parametrize(("n", "critical"), PUBLISHED.items())
def test_critical_values_are_the_published_ones(n: int, critical: int) -> None:
    assert signed_rank_critical(n) == critical


def test_no_interval_below_six_rounds() -> None:
    assert signed_rank_critical(5) is None
    found = hodges_lehmann([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.estimate == 3.0
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("n", [1, 2, 6, 13, 20, 40, 60])
def test_distribution_is_scipys_exact_one(n: int) -> None:
    generator = np.random.default_rng(n)
    cdf = signed_rank_cdf(n)
    assert cdf[-1] == pytest.approx(1.0, abs=1e-12)
    for _ in range(5):
        d = generator.normal(0.3, 1.0, n)
        expected = stats.wilcoxon(d, method="exact", alternative="less")
        assert cdf[int(expected.statistic)] == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [6, 11, 20, 60])
def test_interval_is_where_scipys_test_stops_rejecting(n: int) -> None:
    """The interval holds exactly the shifts that the two-sided 5% test does not reject."""
    d = np.random.default_rng(n).standard_t(3, n)
    found = hodges_lehmann(d)
    step = 1e-9
    for end, outwards in ((found.low, -1), (found.high, 1)):
        assert stats.wilcoxon(d - (end + outwards * step), method="exact").pvalue <= 0.05
        assert stats.wilcoxon(d - (end - outwards * step), method="exact").pvalue > 0.05


def test_hodges_lehmann_by_hand() -> None:
    assert walsh_averages([1.0, 2.0, 6.0]).tolist() == [1.0, 1.5, 2.0, 3.5, 4.0, 6.0]
    assert hodges_lehmann([1.0, 2.0, 6.0]).estimate == 2.75


def test_one_wild_round_hardly_moves_the_estimate() -> None:
    d = np.random.default_rng(0).normal(0.0, 0.01, 20)
    wild = d.copy()
    wild[3] = 5.0
    assert abs(hodges_lehmann(wild).estimate - hodges_lehmann(d).estimate) < 0.005


def test_median_mad_and_geometric_mean() -> None:
    assert median([3.0, 1.0, 100.0]) == 3.0
    assert mad([1.0, 2.0, 3.0, 4.0, 100.0]) == 1.0
    found = geometric_mean([0.5, 1.0, 2.0, 8.0])
    assert found.value == pytest.approx(8.0**0.25)
    assert (found.count, found.below, found.equal, found.above) == (4, 1, 1, 2)


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf], [[1.0]]])
def test_useless_data_is_an_error(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        median(bad)


def test_unpaired_or_impossible_times_are_errors() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        log_ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        log_ratios([0.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        geometric_mean([1.0, 0.0])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, -0.02, Verdict.FASTER),
        (0.02, 0.05, Verdict.SLOWER),
        (-0.005, 0.01, Verdict.SAME),
        (-0.05, -0.005, Verdict.UNDECIDED),
        (0.001, 0.02, Verdict.UNDECIDED),
        (-0.5, 0.5, Verdict.UNDECIDED),
        (-math.inf, math.inf, Verdict.UNDECIDED),
    ],
)
def test_classification(low: float, high: float, expected: Verdict) -> None:
    assert classify(Interval((low + high) / 2, low, high), 0.01) is expected


def test_exit_codes_are_distinct_and_leave_1_and_2_alone() -> None:
    codes = [word.exit_code for word in Verdict]
    assert len(set(codes)) == 4
    assert not {1, 2} & set(codes)
    assert Verdict.SAME.exit_code == 0


def test_floor_widens_delta() -> None:
    d = np.full(20, math.log(1.05))
    assert verdict(d, floor=0.0) is Verdict.SLOWER
    assert verdict(d, floor=0.06) is Verdict.SAME


def _times(
    generator: np.random.Generator, effect: float, scale: float, rounds: int = 20
) -> tuple[list[float], list[float], list[float]]:
    """(B, A, A') with drift (random walk and trend), heavy tails (t with 2 degrees) and bursts of +30%."""
    slots = 3
    drift = np.cumsum(generator.normal(0.0005, 0.01, rounds * slots)).reshape(rounds, slots)
    order = generator.permuted(np.tile(np.arange(slots), (rounds, 1)), axis=1)
    log_t = np.take_along_axis(drift, order, axis=1) + scale * generator.standard_t(2, (rounds, slots))
    log_t += (generator.random((rounds, slots)) < 0.05) * generator.exponential(0.3, (rounds, slots))
    log_t[:, 0] += effect
    b, a, control = np.exp(log_t).T.tolist()
    return b, a, control


def _verdicts(effect: float, scale: float, count: int = 300) -> list[Verdict]:
    generator = np.random.default_rng(7)
    return [compare(*_times(generator, effect, scale)).verdict for _ in range(count)]


@pytest.mark.parametrize("scale", [0.002, 0.01, 0.03, 0.1])
def test_identical_code_is_rarely_called_different(scale: float) -> None:
    found = _verdicts(0.0, scale)
    wrong = sum(word in (Verdict.FASTER, Verdict.SLOWER) for word in found)
    assert wrong <= 0.03 * len(found)


def test_medians_would_call_identical_code_different() -> None:
    """The simulated noise is worth the name: a 1% difference of medians is wrong most of the time."""
    generator = np.random.default_rng(7)
    wrong = 0
    for _ in range(300):
        b, a, _ = _times(generator, 0.0, 0.03)
        wrong += abs(math.log(median(b) / median(a))) > 0.01
    assert wrong > 150


@pytest.mark.parametrize(("effect", "right"), [(0.05, Verdict.SLOWER), (-0.05, Verdict.FASTER)])
def test_five_percent_is_found(effect: float, right: Verdict) -> None:
    found = _verdicts(effect, 0.01)
    assert sum(word is right for word in found) >= 0.75 * len(found)
    reversed_ = Verdict.FASTER if right is Verdict.SLOWER else Verdict.SLOWER
    assert reversed_ not in found


def test_control_floor_is_the_estimate_of_identical_code() -> None:
    a = [1.0] * 8
    assert control_floor([1.02] * 8, a) == pytest.approx(math.log(1.02))
    found = compare([1.02] * 8, a, [1.03] * 8)
    assert found.delta == pytest.approx(math.log(1.03))
    assert found.verdict is Verdict.SAME
    assert compare([1.02] * 8, a, None).verdict is Verdict.SLOWER


def test_too_few_rounds_give_a_ratio_and_no_interval() -> None:
    found = compare([2.0] * 5, [1.0] * 5, [1.0] * 5)
    assert found.ratio == pytest.approx(2.0)
    assert (found.low, found.high, found.verdict) == (None, None, Verdict.UNDECIDED)
