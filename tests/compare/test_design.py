"""The live design on scripted samplers: order, quartiles, layouts, stopping."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pft_bench.harness.compare import design
from pft_bench.harness.compare.design import ROUNDS_A_LAYOUT, SIDES, Design, Sampler, measure_pair
from pft_bench.harness.compare.local import NotComparable, local_layout
from pft_bench.harness.measure.contender import Contender
from pft_bench.harness.measure.verdicts import LOOKS, Verdict
from pft_bench.harness.record import CheckEntry


class Scripted:
    def __init__(self, seconds: Callable[[str, int], float], block_s: float = 0.001) -> None:
        self.seconds, self.slow_s = seconds, block_s
        self.asked: list[str] = []
        self.blocks: set[int] = set()
        self.layouts: list[int] = []

    def block_s(self, side: str) -> float:
        return self.slow_s if side == "B" else self.slow_s / 2

    def sample_s(self, side: str, blocks: int) -> list[float]:
        self.asked.append(side)
        self.blocks.add(blocks)
        return [self.seconds(side, len(self.asked)) for _ in range(blocks)]

    def layout(self) -> design.Layout:
        @contextmanager
        def made(number: int) -> Iterator[Sampler]:
            self.layouts.append(number)
            yield self

        return made


def noisy(effect: float, scale: float = 0.004, seed: int = 0) -> Callable[[str, int], float]:
    generator = np.random.default_rng(seed)
    return lambda side, _: math.exp(generator.normal(0, scale)) * (effect if side == "B" else 1.0)


def test_every_round_is_mirrored_and_holds_each_side_twice() -> None:
    script = Scripted(noisy(1.0))
    measure_pair(script.layout(), Design())
    assert len(script.asked) % 6 == 0
    for start in range(0, len(script.asked), 6):
        six = script.asked[start : start + 6]
        assert Counter(six) == dict.fromkeys(SIDES, 2)
        assert six[3:] == six[2::-1]
    assert len({tuple(script.asked[i : i + 3]) for i in range(0, len(script.asked), 6)}) > 2


def test_a_steady_drift_cancels() -> None:
    script = Scripted(lambda side, n: 1.002**n)
    found = measure_pair(script.layout(), Design())
    assert found.evidence().ratio == pytest.approx(1.0, abs=2e-3)


def test_clear_differences_stop_at_the_first_look_and_scatter_goes_to_the_last() -> None:
    assert len(measure_pair(Scripted(noisy(1.5)).layout(), Design()).a_s) == LOOKS[0]
    found = measure_pair(Scripted(noisy(1.0, 1.0)).layout(), Design())
    assert len(found.a_s) == LOOKS[-1]
    assert found.evidence().verdict(0.05) is Verdict.UNDECIDED
    assert "48 rounds" in found.stop_reason


def test_buffers_are_built_anew() -> None:
    script = Scripted(noisy(1.0, 1.0))
    measure_pair(script.layout(), Design())
    assert script.layouts == list(range(LOOKS[-1] // ROUNDS_A_LAYOUT))


def test_a_slot_is_long_enough_and_all_sides_have_equally_many_blocks() -> None:
    script = Scripted(noisy(1.5))
    assert measure_pair(script.layout(), Design()).blocks == 5
    assert script.blocks == {5}
    slow = Scripted(noisy(1.5), block_s=1.0)
    assert measure_pair(slow.layout(), Design()).blocks == 1


def test_slices_that_a_neighbour_takes_do_not_move_the_sample() -> None:
    """Half of all blocks take 50% to 500% longer, as under a saturating neighbour; B does 5% more work."""
    generator = np.random.default_rng(4)
    noise = noisy(1.05, 0.003)

    def disturbed(side: str, n: int) -> float:
        return noise(side, n) * (1 + generator.uniform(0.5, 5) * (generator.random() < 0.5))

    found = measure_pair(Scripted(disturbed).layout(), Design())
    assert found.evidence().verdict(0.05) is Verdict.SLOWER


def test_the_budget_ends_it_at_twelve_rounds_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr(design.time, "perf_counter", lambda: float(next(clock)))
    found = measure_pair(Scripted(noisy(1.0, 1.0)).layout(), Design(budget_s=20.0))
    assert LOOKS[0] <= len(found.a_s) < LOOKS[1]
    assert "budget" in found.stop_reason


def test_real_calls_and_a_failed_check() -> None:
    data = np.random.default_rng(0).random(100_000)

    def build(side: str) -> Contender:
        mine = data[:60_000].copy() if side == "B" else data.copy()
        return Contender(side, lambda: np.sort(mine), lambda _: [CheckEntry("planted", True)])

    assert measure_pair(local_layout(build), Design()).evidence().verdict(0.05) is Verdict.FASTER

    def wrong(side: str) -> Contender:
        return Contender(side, lambda: None, lambda _: [CheckEntry("planted", side != "B", "off")])

    with pytest.raises(NotComparable, match="B: failed: planted: off"):
        measure_pair(local_layout(wrong), Design())


@pytest.mark.parametrize("bad", [{"margin": 0.0}, {"budget_s": 0.0}, {"cases": 0}])
def test_impossible_designs_are_errors(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Design(**bad)  # type: ignore[arg-type]
