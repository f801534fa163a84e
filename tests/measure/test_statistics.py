"""The statistics against published tables and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from pft_bench.harness.measure.statistics import (
    control_floor,
    geometric_mean,
    hodges_lehmann,
    log_ratios,
    mad,
    median,
    signed_rank_cdf,
    signed_rank_critical,
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


def test_control_floor_is_the_estimate_of_identical_code() -> None:
    assert control_floor([1.02] * 8, [1.0] * 8) == pytest.approx(math.log(1.02))
