"""Verdicts on made-up rounds: error rates, looks, Holm, and agreement with scipy's exact tests and the interval."""

import math

import numpy as np
import pytest
from scipy import stats

from pft_bench.harness.measure.statistics import hodges_lehmann, hodges_lehmann_shift, median, rank_sum_cdf
from pft_bench.harness.measure.verdicts import (
    ALPHA,
    LOOKS,
    RUN_MARGIN,
    SPENDING,
    Verdict,
    evidence,
    exit_code,
    holm,
    judge,
    single_look,
    spent,
    summarise,
    tail,
    unpaired,
)


def rounds(shift: float, scale: float, count: int = LOOKS[-1], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(math.log1p(shift), scale, count)


@pytest.mark.parametrize("count", [6, 12, 25])
def test_p_values_are_those_of_the_exact_signed_rank_test(count: int) -> None:
    d = rounds(0.03, 0.05, count, seed=count)
    above, below = tail(d, 0.01)
    assert above == pytest.approx(stats.wilcoxon(d - 0.01, alternative="greater", method="exact").pvalue)
    assert below == pytest.approx(stats.wilcoxon(d - 0.01, alternative="less", method="exact").pvalue)


def test_a_difference_that_equals_the_margin_is_not_beyond_it() -> None:
    above, below = tail([0.02] * 12, 0.02)
    assert above == below == 1.0


@pytest.mark.parametrize(("n", "m"), [(4, 7), (20, 20), (6, 60)])
def test_rank_sums_are_scipys(n: int, m: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(0, 1, n), generator.normal(0.5, 1, m)
    u = int((np.subtract.outer(b, a) < 0).sum())
    assert rank_sum_cdf(n, m)[u] == pytest.approx(
        stats.mannwhitneyu(b, a, alternative="greater", method="exact").pvalue
    )


def test_the_unpaired_interval_covers_and_its_verdict_follows() -> None:
    generator = np.random.default_rng(1)
    missed = sum(
        not found.low <= 0.05 <= found.high
        for found in (
            hodges_lehmann_shift(generator.normal(0, 0.02, 20), generator.normal(0.05, 0.02, 20))
            for _ in range(300)
        )
    )
    assert missed <= 27  # 15 expected at 5%
    assert unpaired(rounds(0, 0.01, 20, 1), rounds(0.1, 0.01, 20, 2)).verdict(ALPHA) is Verdict.SLOWER
    assert unpaired(rounds(0, 0.005, 20, 1), rounds(0, 0.005, 20, 2)).verdict(ALPHA) is Verdict.SAME


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.1, Verdict.SLOWER), (-0.1, Verdict.FASTER), (0.0, Verdict.SAME)]
)
def test_clear_cases(shift: float, expected: Verdict) -> None:
    assert evidence(rounds(shift, 0.005)).verdict(ALPHA) is expected


def test_scatter_leaves_it_undecided() -> None:
    assert evidence(rounds(0.03, 0.3)).verdict(ALPHA) is Verdict.UNDECIDED
    assert evidence(rounds(0.0, 0.3)).verdict(ALPHA) is Verdict.UNDECIDED


def test_what_the_control_showed_is_no_difference() -> None:
    d = rounds(0.05, 0.005)
    assert evidence(d, floor=0.01).verdict(ALPHA) is Verdict.SLOWER
    assert evidence(d, floor=0.08).verdict(ALPHA) is Verdict.SAME


def test_the_shares_of_all_looks_add_up_to_one() -> None:
    assert sum(SPENDING) == pytest.approx(1.0)
    for count in range(6, LOOKS[-1] + 1):
        looks = spent(count)
        assert [rounds for rounds, _ in looks][-1] == count
        assert sum(share for _, share in looks) <= 1.0 + 1e-12


def stopped(d: np.ndarray) -> Verdict:
    """The verdict of a comparison that stops at the first look that decides."""
    for look in LOOKS:
        found = evidence(d[:look]).verdict(ALPHA)
        if found is not Verdict.UNDECIDED:
            return found
    return Verdict.UNDECIDED


@pytest.mark.parametrize("draw", ["normal", "heavy"])
def test_stopping_early_keeps_the_rate_at_the_very_margin(draw: str) -> None:
    """The true difference is the margin itself, where a false FASTER or SLOWER is likeliest."""
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        noise = generator.normal(0, 0.01, 48) if draw == "normal" else 0.004 * generator.standard_t(1.5, 48)
        wrong += stopped(math.log1p(0.02) + noise) in (Verdict.SLOWER, Verdict.FASTER)
    assert wrong <= 18  # 2.5% of 400 is 10; 18 has a chance of 1%


def test_looking_without_a_price_would_break_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is able to fail: spend the whole error at every one of many looks."""
    monkeypatch.setattr("pft_bench.harness.measure.verdicts.LOOKS", tuple(range(8, 49)))
    monkeypatch.setattr("pft_bench.harness.measure.verdicts.SPENDING", (1.0,) * 41)
    generator = np.random.default_rng(2)
    draws = [math.log1p(0.02) + generator.normal(0, 0.01, 48) for _ in range(150)]
    wrong = sum(evidence(d).verdict(ALPHA) is Verdict.SLOWER for d in draws)
    assert wrong > 10


def test_holm_by_hand_and_against_the_definition() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_many_cases_need_more_evidence_than_one() -> None:
    found = evidence(rounds(0.05, 0.03, 24, seed=5))
    assert found.verdict(ALPHA) is Verdict.SLOWER
    alone = judge({"one": found})
    assert alone["one"].verdict is Verdict.SLOWER
    noise = {f"other {i}": evidence(rounds(0.0, 0.3, 24, seed=i)) for i in range(80)}
    assert judge({"one": found, **noise})["one"].verdict is Verdict.UNDECIDED


def test_a_table_of_identical_cases_holds_no_difference() -> None:
    """Forty cases that lie at the margin: without the correction about one of them would be called SLOWER."""
    tables = 0
    for table in range(20):
        found = {f"{i}": evidence(rounds(0.02, 0.01, 24, seed=1000 * table + i)) for i in range(40)}
        tables += any(item.verdict is Verdict.SLOWER for item in judge(found).values())
    assert tables <= 3


@pytest.mark.parametrize(
    ("shifts", "failed", "code"),
    [((0, 0), 0, 0), ((0, -0.1), 0, 3), ((-0.1, 0.1), 0, 4), ((0, None), 0, 5), ((0.1, None), 0, 4),
     ((0, 0), 1, 1), ((), 0, 1)],
)  # fmt: skip
def test_exit_codes(shifts: tuple[float | None, ...], failed: int, code: int) -> None:
    scatter = [(0.0, 0.3) if shift is None else (shift, 0.003) for shift in shifts]
    judged = judge({str(i): evidence(rounds(*item, seed=i)) for i, item in enumerate(scatter)})
    assert exit_code(judged.values(), failed) == code


def test_the_mean_takes_undecided_cases_too() -> None:
    judged = judge({"a": evidence(rounds(1.0, 0.001)), "b": evidence(rounds(0.0, 0.3))})
    summary = summarise(judged.values())
    assert summary.mean is not None
    assert summary.mean.count == 2
    assert summary.counts[Verdict.SLOWER] == summary.counts[Verdict.UNDECIDED] == 1
    assert summarise([]).mean is None


def test_exit_codes_are_distinct_and_leave_1_and_2_alone() -> None:
    codes = [word.exit_code for word in Verdict]
    assert len(set(codes)) == 4
    assert not {1, 2} & set(codes)
    assert Verdict.SAME.exit_code == 0


@pytest.mark.parametrize("seed", range(40))
def test_a_run_decides_by_where_its_interval_lies(seed: int) -> None:
    """FASTER, SLOWER or SAME exactly where the whole 95% interval lies below, above or inside of the margin."""
    generator = np.random.default_rng(seed)
    d = generator.normal(generator.uniform(-0.03, 0.03), 10 ** generator.uniform(-3, -1.3), 6 + seed)
    base = np.full(d.size, 0.1)
    found = single_look(base * np.exp(d), base, base)
    interval = hodges_lehmann(d)
    expected = Verdict.UNDECIDED
    if interval.high < -RUN_MARGIN:
        expected = Verdict.FASTER
    elif interval.low > RUN_MARGIN:
        expected = Verdict.SLOWER
    elif interval.low > -RUN_MARGIN and interval.high < RUN_MARGIN:
        expected = Verdict.SAME
    assert found.verdict(ALPHA) is expected
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_the_floor_of_a_run_widens_its_margin() -> None:
    a = [1.0] * 8
    found = single_look([1.02] * 8, a, [1.03] * 8)
    assert found.delta == pytest.approx(math.log(1.03))
    assert found.verdict(ALPHA) is Verdict.SAME
    assert single_look([1.02] * 8, a, None).verdict(ALPHA) is Verdict.SLOWER


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
    return [single_look(*_times(generator, effect, scale)).verdict(ALPHA) for _ in range(count)]


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


def test_too_few_rounds_give_a_ratio_and_no_interval() -> None:
    found = single_look([2.0] * 5, [1.0] * 5, [1.0] * 5)
    assert found.ratio == pytest.approx(2.0)
    assert (found.low, found.high, found.verdict(ALPHA)) == (None, None, Verdict.UNDECIDED)
