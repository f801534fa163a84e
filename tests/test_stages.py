"""Stage times: exclusive, complete, and nothing at all unless somebody listens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pft_bench.common import stages


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_inside_an_inner_stage_is_not_counted_twice(clock: Clock) -> None:
    with stages.record() as times:
        clock.tick(1)
        with stages.stage("ffn"):
            clock.tick(2)
            with stages.stage("conv"):
                clock.tick(4)
            clock.tick(8)
        with stages.stage("conv"):
            clock.tick(16)
    assert times.seconds == {"other": 1, "ffn": 10, "conv": 20}
    assert sum(times.seconds.values()) == clock.now


def test_split_replaces_a_stage_by_its_parts(clock: Clock) -> None:
    with stages.record() as times:
        with stages.stage("attention"):
            clock.tick(6)
        stages.split("attention", {"logits": 1.0, "select": 0.0, "av": 2.0})
    assert times.seconds == {"logits": 2, "select": 0, "av": 4, "other": 0}


def test_split_without_any_weight_loses_no_time(clock: Clock) -> None:
    with stages.record() as times:
        with stages.stage("attention"):
            clock.tick(6)
        stages.split("attention", {"logits": 0.0, "av": 0.0})
    assert times.seconds == {"logits": 3, "av": 3, "other": 0}


def test_split_of_a_stage_that_never_ran_changes_nothing(clock: Clock) -> None:
    with stages.record() as times:
        stages.split("attention", {"logits": 1.0})
    assert times.seconds == {"other": 0}


def test_an_exception_closes_its_stages(clock: Clock) -> None:
    def fail() -> None:
        with stages.stage("ffn"), stages.stage("conv"):
            clock.tick(3)
            raise KeyError

    with stages.record() as times, pytest.raises(KeyError):
        fail()
    assert times.seconds == {"conv": 3, "ffn": 0, "other": 0}
    assert not stages.active()
    with stages.record():
        assert stages.active()


def test_recordings_do_not_nest() -> None:
    with stages.record(), pytest.raises(RuntimeError, match="already active"), stages.record():
        pass
    assert not stages.active()


def test_without_a_recorder_nothing_is_kept() -> None:
    with stages.stage("ffn"):
        stages.split("ffn", {"conv": 1.0})
    with stages.record() as times:
        pass
    assert set(times.seconds) == {"other"}


def test_the_device_is_waited_for_before_each_reading() -> None:
    waits = []
    with stages.record(lambda: waits.append(1)), stages.stage("ffn"):
        pass
    assert len(waits) == 4  # start and end of the whole and of the stage


def test_annotations_name_each_stage_and_end_with_their_context() -> None:
    seen: list[str] = []

    @contextmanager
    def make(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    with stages.annotate(make), stages.stage("ffn"), stages.stage("conv"):
        pass
    with stages.stage("norm"):
        pass
    assert seen == ["ffn", "conv"]
