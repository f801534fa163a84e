"""The interleaved design on a scripted timer: order, stopping, dropping, refusing."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made import measure_quickly

from pft_bench.harness.measure import disturbance
from pft_bench.harness.measure.contender import Call, Contender
from pft_bench.harness.measure.disturbance import ForeignLoad, Reading
from pft_bench.harness.measure.order import CONTROL, order_of_rounds
from pft_bench.harness.measure.results import RoundsResult
from pft_bench.harness.measure.rounds import Plan, Progress, measure
from pft_bench.harness.measure.verdicts import single_look
from pft_bench.harness.measure.verified import Verified
from pft_bench.harness.record import CheckEntry

PASSED = CheckEntry("planted", True)


class ScriptedTimer:
    """Gives out made-up seconds and notes who was asked."""

    method = "scripted"

    def __init__(
        self, seconds: Callable[[str, int], float] = lambda name, n: 1.0, wait_s: float = 0.0
    ) -> None:
        self.seconds, self.wait_s = seconds, wait_s
        self.asked: list[str] = []

    def warm_up(self, subject: Verified) -> None:
        pass

    def calibrate(self, subject: Verified) -> int:
        return 3

    def sample_s(self, subject: Verified, repeats: int) -> float:
        assert repeats == 3
        assert not gc.isenabled()
        subject.call()
        time.sleep(self.wait_s)
        self.asked.append(subject.name)
        return self.seconds(subject.name, len(self.asked))


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement here is made up."""
    measure_quickly(monkeypatch)


def contender(name: str, call: Call = lambda: None, checks: Sequence[CheckEntry] = (PASSED,)) -> Contender:
    return Contender(name, call, lambda _: checks)


def run(timer: ScriptedTimer, names: str = "AB", plan: Plan | None = None, **more: Any) -> RoundsResult:
    return measure([contender(name) for name in names], "A", plan, timer=timer, **more)


def noisy(scale: float, seed: int = 0) -> Callable[[str, int], float]:
    generator = np.random.default_rng(seed)
    return lambda name, n: float(np.exp(generator.normal(0.0, scale)))


def test_orders_are_seeded_and_balanced() -> None:
    slots = ["A", "B", "C", CONTROL]
    orders = list(islice(order_of_rounds(slots, 5), 200))
    assert orders == list(islice(order_of_rounds(slots, 5), 200))
    assert orders != list(islice(order_of_rounds(slots, 6), 200))
    assert all(sorted(order) == sorted(slots) for order in orders)
    for slot in slots:
        positions = [order.index(slot) for order in orders]
        assert sum(positions) == 1.5 * len(orders)  # exactly: every order is followed by its mirror image
        assert min(Counter(positions).values()) > 25  # 50 expected at each of four positions


def test_baseline_runs_twice_a_round_and_the_others_once() -> None:
    timer = ScriptedTimer()
    found = run(timer, "ABC")
    assert Counter(timer.asked) == {"A": 40, "B": 20, "C": 20}
    for i in range(0, 80, 4):
        assert sorted(timer.asked[i : i + 4]) == ["A", "A", "B", "C"]
    assert found.rounds == tuple(range(20))
    assert len(found.control_s) == 20
    assert found.stop_reason == "interval narrow enough"
    assert found.contenders["B"].repeats == 3
    assert (found.method, found.order_seed) == ("scripted", 0)


def test_a_steady_drift_does_not_bend_the_ratio() -> None:
    """Each sample is 0.5% slower than the one before; a fixed order would bend B."""
    found = run(ScriptedTimer(lambda name, n: 1.005**n))
    b = found.contenders["B"].samples_s
    assert single_look(b, found.contenders["A"].samples_s, found.control_s).ratio == pytest.approx(
        1.0, abs=2e-3
    )


def test_wide_intervals_extend_to_the_cap_and_no_further() -> None:
    assert len(run(ScriptedTimer(noisy(0.5))).rounds) == 60
    middle = run(ScriptedTimer(noisy(0.02)))
    assert 20 < len(middle.rounds) < 60
    assert len(run(ScriptedTimer(noisy(0.001))).rounds) == 20


def test_stopping_does_not_look_at_the_difference() -> None:
    """The same noise stops after the same number of rounds, whatever the ratio."""

    def rounds(effect: float) -> Any:
        noise = noisy(0.02, seed=3)
        return run(ScriptedTimer(lambda name, n: noise(name, n) * (effect if name == "B" else 1.0))).rounds

    plain = rounds(1.0)
    assert all(rounds(effect) == plain for effect in (0.5, 0.95, 1.05, 2.0))


def test_time_budget_ends_early_and_keeps_everything() -> None:
    found = run(ScriptedTimer(wait_s=0.004), plan=Plan(budget_s=0.2, min_rounds=6))
    assert 6 <= len(found.rounds) < 20
    assert len(found.contenders["A"].samples_s) == len(found.contenders["B"].samples_s) == len(found.rounds)
    assert "time budget of 0.2 s" in found.stop_reason


def test_minimum_of_rounds_comes_before_the_budget() -> None:
    assert len(run(ScriptedTimer(wait_s=0.01), plan=Plan(budget_s=0.01, min_rounds=7)).rounds) == 7


def test_no_sample_is_dropped_by_value() -> None:
    found = run(ScriptedTimer(lambda name, n: 1000.0 if n == 5 else 1.0))
    everything = [*found.contenders["A"].samples_s, *found.contenders["B"].samples_s, *found.control_s]
    assert everything.count(1000.0) == 1
    assert len(everything) == 60


def test_rounds_are_dropped_whole_on_outside_evidence_and_counted() -> None:
    asked = iter(range(1000))  # asked before and after each round: after round r the number is 2r + 1

    def disturbance() -> str | None:
        return "clock fell" if next(asked) in (3, 9) else None

    found = run(ScriptedTimer(), disturbance=disturbance)
    assert [(item.round, item.reason) for item in found.dropped] == [(1, "clock fell"), (4, "clock fell")]
    assert found.rounds == (0, 2, 3, *range(5, 22))
    assert {len(item.samples_s) for item in found.contenders.values()} == {20}


def test_endless_disturbance_ends() -> None:
    """Where the load never ends it is what the machine is: a quarter of the rounds is dropped, the others count."""
    found = run(ScriptedTimer(), disturbance=lambda: "always")
    assert len(found.dropped) == 5
    assert found.rounds == tuple(range(5, 25))
    assert "20 disturbed rounds kept" in found.stop_reason


def test_failed_check_means_no_time() -> None:
    timer = ScriptedTimer()
    wrong = contender("wrong", checks=(PASSED, CheckEntry("tail", False, "error 3 > 1e-6")))
    found = measure([contender("A"), wrong, contender("B")], "A", timer=timer)
    assert "wrong" not in timer.asked
    result = found.contenders["wrong"]
    assert result.rejection is not None
    assert (result.rejection.status, result.rejection.reason) == ("failed", "tail: error 3 > 1e-6")
    assert result.samples_s == ()
    assert len(found.contenders["B"].samples_s) == 20


def test_failed_baseline_leaves_the_others_their_times() -> None:
    broken = contender("A", checks=(CheckEntry("planted", False),))
    found = measure([broken, contender("B")], "A", timer=ScriptedTimer())
    assert len(found.contenders["B"].samples_s) == 20
    assert found.control_s == ()


def test_every_check_runs_before_anything_is_timed() -> None:
    log: list[str] = []

    def check(_: Call) -> list[CheckEntry]:
        log.append("check")
        return [PASSED]

    both = [Contender(name, lambda: log.append("call"), check) for name in "AB"]
    measure(both, "A", timer=ScriptedTimer())
    assert log[:2] == ["check", "check"]
    assert log.count("check") == 2


def test_each_candidate_is_prepared_before_its_check_its_warm_up_and_each_sample_outside_of_them() -> None:
    log: list[str] = []

    class Logging(ScriptedTimer):
        def warm_up(self, subject: Verified) -> None:
            log.append(f"warm-up {subject.name}")

        def sample_s(self, subject: Verified, repeats: int) -> float:
            log.append(f"sample {subject.name}")
            return super().sample_s(subject, repeats)

    def made(name: str) -> Contender:
        def check(_: Call) -> list[CheckEntry]:
            log.append(f"check {name}")
            return [PASSED]

        return Contender(name, lambda: None, check, prepare=lambda: log.append(f"prepare {name}"))

    found = measure([made("A"), made("B")], "A", Plan(rounds=6, max_rounds=6), timer=Logging())
    prepared, done = log[::2], log[1::2]
    assert [word.split()[1] for word in prepared] == [word.split()[1] for word in done]
    assert all(word.startswith("prepare") for word in prepared)
    assert Counter(done) == {
        **{f"{what} {name}": 1 for what in ("check", "warm-up") for name in "AB"},
        "sample A": 2 * len(found.rounds),
        "sample B": len(found.rounds),
    }


def test_a_candidate_that_cannot_be_prepared_leaves_the_others_running() -> None:
    calls = iter(range(1000))

    def prepare() -> None:
        if next(calls) == 5:
            raise RuntimeError("no more threads")

    both = [contender("A"), Contender("B", lambda: None, lambda _: [PASSED], prepare=prepare)]
    found = measure(both, "A", timer=ScriptedTimer())
    rejection = found.contenders["B"].rejection
    assert rejection is not None
    assert rejection.reason == "RuntimeError: no more threads"
    assert len(found.contenders["A"].samples_s) == 20


@pytest.mark.parametrize("victim", ["A", "B"])
def test_a_candidate_that_raises_while_timed_leaves_the_others_running(victim: str) -> None:
    def raises_later(name: str, n: int) -> float:
        if name == victim and n > 10:
            raise RuntimeError("illegal memory access")
        return 1.0

    found = run(ScriptedTimer(raises_later), "ABC")
    rejection = found.contenders[victim].rejection
    assert rejection is not None
    assert rejection.reason == "RuntimeError: illegal memory access"
    assert found.contenders[victim].samples_s == ()
    for name in set("ABC") - {victim}:
        assert len(found.contenders[name].samples_s) == len(found.rounds) == 20
    assert len(found.control_s) == (0 if victim == "A" else 20)


def test_all_refused_ends_at_once() -> None:
    found = measure([contender("A", checks=())], "A", timer=ScriptedTimer())
    assert found.rounds == ()
    assert found.stop_reason == "nothing left to time"


def test_collector_is_off_inside_and_as_before_after() -> None:
    assert gc.isenabled()
    run(ScriptedTimer())  # asserts inside
    assert gc.isenabled()
    gc.disable()
    try:
        run(ScriptedTimer())
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


def test_progress_is_told_before_each_round() -> None:
    seen: list[Progress] = []
    run(ScriptedTimer(), on_progress=seen.append)
    assert [item.rounds for item in seen] == list(range(20))
    assert {item.planned for item in seen} == {20}


@pytest.mark.parametrize("names", ["BC", "AA", ["A", CONTROL]])
def test_names_must_be_distinct_and_hold_the_baseline(names: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="distinct names"):
        measure([contender(name) for name in names], "A")


@pytest.mark.parametrize(
    "bad", [{"rounds": 5}, {"max_rounds": 10}, {"min_rounds": 0}, {"budget_s": 0.0}, {"target_width": 0.0}]
)
def test_impossible_plans_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|need 1 <="):
        Plan(**bad)


def test_real_calls_end_to_end() -> None:
    """A twentieth of the work is found faster by the real timer, however loaded this machine is."""
    data = np.random.default_rng(0).random(200_000)
    both = [contender("A", lambda: np.sort(data)), contender("B", lambda: np.sort(data[:10_000]))]
    found = measure(both, "A", Plan(rounds=10, max_rounds=10))
    result = single_look(found.contenders["B"].samples_s, found.contenders["A"].samples_s, found.control_s)
    assert result.verdict(0.05) == "FASTER"
    assert found.method == "cpu-block"


def test_foreign_load_sees_another_process_and_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ForeignLoad(max_fraction=0.25)
    readings = iter([(10.0, 100.0), (11.0, 100.01), (12.0, 100.0 + 8 * 0.9), (12.05, 200.0)])
    monkeypatch.setattr(disturbance, "read", lambda: Reading(*next(readings), 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    load()
    assert load() is None
    assert "90%" in (load() or "")
    assert load() is None  # 50 ms: too short to tell


@pytest.mark.parametrize(
    ("steal_s", "throttled_s", "told"),
    [(4.0, 0.0, "host took 50%"), (0.0, 0.5, "quota held this process back for 50%"), (1.0, 0.1, None)],
)
def test_the_host_and_a_quota_are_evidence(
    monkeypatch: pytest.MonkeyPatch, steal_s: float, throttled_s: float, told: str | None
) -> None:
    readings = iter([Reading(10.0, 5.0, 1.0, 2.0), Reading(11.0, 5.0, 1.0 + steal_s, 2.0 + throttled_s)])
    monkeypatch.setattr(disturbance, "read", lambda: next(readings))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    said = ForeignLoad()()
    assert said is None if told is None else told in (said or "")


def test_a_busy_machine_says_so_and_a_quiet_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for foreign_s, told in ((0.1, None), (1.5, "other processes used 75% of the processors")):
        readings = iter([Reading(0.0, 0.0, 0.0, 0.0), Reading(1.0, foreign_s, 0.0, 0.0)])
        monkeypatch.setattr(disturbance, "read", lambda left=readings: next(left))
        said = disturbance.busy_machine(0.0)
        assert said is None if told is None else told in (said or "")


def test_own_work_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = iter(
        [
            SimpleNamespace(user=50.0, system=5.0, steal=0.0),
            SimpleNamespace(user=51.25, system=5.5, steal=0.25),
        ]
    )
    own = iter([SimpleNamespace(user=10.0, system=1.0), SimpleNamespace(user=11.0, system=1.5)])
    monkeypatch.setattr("psutil.cpu_times", lambda: next(machine))
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    before, after = disturbance.read(), disturbance.read()
    assert before is not None
    assert after is not None
    assert after.foreign_s - before.foreign_s == pytest.approx(0.25)  # the 1.5 s of this process are its own
    assert after.steal_s - before.steal_s == pytest.approx(0.25)


def test_reading_the_real_machine_works() -> None:
    load = ForeignLoad(max_fraction=2.0)
    time.sleep(0.11)
    assert load() is None  # more than all processors cannot have been used
