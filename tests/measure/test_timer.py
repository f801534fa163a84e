"""The timers against calls of known length; the CUDA ones only for what can be seen without a GPU."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pft_bench.harness.measure import timer as timer_module
from pft_bench.harness.measure.admission import Refused, verify
from pft_bench.harness.measure.contender import Call, Contender
from pft_bench.harness.measure.timer import CpuTimer, CudaEventTimer, timer_for, untimed
from pft_bench.harness.measure.verified import Verified
from pft_bench.harness.record import CheckEntry


def passed() -> list[CheckEntry]:
    return [CheckEntry("planted", True)]


def verified(call: Call) -> Verified:
    found = verify(Contender("it", call, lambda _: passed()))
    assert isinstance(found, Verified)
    return found


class Clock:
    """A clock that only the measured calls move: exact on however loaded a machine."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        fake = SimpleNamespace(
            perf_counter=lambda: self.now_s, perf_counter_ns=lambda: round(self.now_s * 1e9)
        )
        patch.setattr(timer_module, "time", fake)
        patch.setattr(timer_module, "_now_ns", fake.perf_counter_ns)

    def call(self, seconds: float, first: float | None = None) -> Call:
        """A call that takes `seconds`, the first time `first`."""
        lengths = iter([] if first is None else [first])

        def call() -> None:
            self.now_s += next(lengths, seconds)

        return call


def counting(calls: list[int], seconds: float) -> Call:
    def call() -> None:
        calls.append(1)
        time.sleep(seconds)

    return call


def test_sleep_is_measured_in_seconds_on_the_real_clock() -> None:
    sample_s = min(CpuTimer().sample_s(verified(lambda: time.sleep(0.02)), 1) for _ in range(5))
    assert 0.02 <= sample_s < 0.1  # no tight limit: test machines are shared


@pytest.mark.parametrize("seconds", [1e-7, 20e-6, 1e-3, 4.9e-3, 5.1e-3, 0.2])
def test_calls_fill_a_block_and_are_divided_by_their_number(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    timer, subject = CpuTimer(), verified(Clock(monkeypatch).call(seconds))
    repeats = timer.calibrate(subject)
    assert timer.sample_s(subject, repeats) == pytest.approx(seconds, rel=1e-4)
    assert repeats * seconds >= timer.min_block_s
    assert repeats == 1 or repeats * seconds <= 10 * timer.min_block_s  # filled, not wasted


def test_long_calls_are_not_repeated() -> None:
    calls: list[int] = []
    subject = verified(counting(calls, 0.06))
    assert CpuTimer().calibrate(subject) == 1
    assert len(calls) == 1


def test_one_disturbed_block_does_not_shorten_all_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block is slow, e.g. because its pages are touched for the first time."""
    subject = verified(Clock(monkeypatch).call(0.0002, first=0.02))
    assert CpuTimer().calibrate(subject) >= 25


def test_short_calls_get_an_untimed_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran before has taken the cache: the first call of a block is slow and must not count."""
    subject = verified(Clock(monkeypatch).call(0.001, first=0.5))
    assert CpuTimer().sample_s(subject, 5) == pytest.approx(0.001)


def test_warm_up_runs_short_calls_often_and_long_ones_once() -> None:
    short: list[int] = []
    CpuTimer().warm_up(verified(lambda: short.append(1)))
    long: list[int] = []
    CpuTimer().warm_up(verified(counting(long, 0.26)))
    assert len(short) >= 3
    assert len(long) == 1


def test_a_subject_of_an_older_version_changes_its_inputs_and_does_not_look_at_untimed_calls() -> None:
    done: list[str] = []
    older = SimpleNamespace(
        changes=True,
        renew=lambda: done.append("renew"),
        state=lambda: done.append("state"),
        call=lambda: done.append("call"),
    )
    untimed(older)  # type: ignore[arg-type]
    assert done == ["renew", "state", "call"]


def test_nothing_unchecked_can_be_timed() -> None:
    contender = Contender("it", lambda: None, lambda _: [])
    with pytest.raises(TypeError, match="unchecked"):
        Verified(contender, (), object())
    assert isinstance(verify(contender), Refused)  # a check without a result is no check


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("index must be [B, N, K]"), "error"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "oom"),
    ],
)
def test_an_exception_in_a_check_becomes_a_reason(error: Exception, status: str) -> None:
    def check(_: Call) -> list[CheckEntry]:
        raise error

    found = verify(Contender("it", lambda: None, check))
    assert isinstance(found, Refused)
    assert found.rejection.status == status
    assert type(error).__name__ in found.rejection.reason


def test_the_allocator_of_torch_runs_out_as_expected() -> None:
    """The wording that tells an exhausted CPU allocator from other RuntimeErrors."""

    def check(call: Call) -> list[CheckEntry]:
        call()
        return passed()

    found = verify(Contender("it", lambda: torch.empty(1 << 60, dtype=torch.int8), check))
    assert isinstance(found, Refused)
    assert found.rejection.status == "oom", found.rejection


def test_check_gets_the_callable_that_is_timed() -> None:
    seen: list[Call] = []

    def call() -> None:
        pass

    def check(given: Call) -> list[CheckEntry]:
        seen.append(given)
        return passed()

    found = verify(Contender("it", call, check))
    assert isinstance(found, Verified)
    assert seen == [call] == [found.call]


class FakeCuda:
    """Just enough of torch.cuda to log the order of what the CUDA timers do."""

    def __init__(self, elapsed_ms: float) -> None:
        self.log: list[str] = []
        self.elapsed_ms = elapsed_ms

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("event")

            def synchronize(self) -> None:
                """The call's own stream is done."""

            def elapsed_time(self, _: Any) -> float:
                return fake.elapsed_ms

        properties = SimpleNamespace(L2_cache_size=50 << 20)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "synchronize", lambda *_: self.log.append("synchronize"))
        patch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        patch.setattr(timer_module, "WARMUP_S", 0.0)


def test_events_flush_the_cache_before_and_wait_after(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(elapsed_ms=0.5)
    fake.install(monkeypatch)
    timer = CudaEventTimer(torch.device("cpu"))
    assert timer._flush.numel() == 100 << 20
    timer._flush = SimpleNamespace(zero_=lambda: fake.log.append("flush"))  # type: ignore[assignment]
    subject = verified(lambda: fake.log.append("call"))
    assert timer.sample_s(subject, timer.calibrate(subject)) == pytest.approx(0.5e-3)
    assert fake.log == ["flush", "synchronize", "event", "call", "event", "synchronize"]
    with pytest.raises(ValueError, match="one call"):
        timer.sample_s(subject, 2)


def test_a_device_has_its_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(elapsed_ms=0.5).install(monkeypatch)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # the buffer that flushes the cache
    methods = [timer_for(torch.device(kind)).method for kind in ("cpu", "cuda")]
    assert methods == ["cpu-block", "cuda-events-cold-l2"]
