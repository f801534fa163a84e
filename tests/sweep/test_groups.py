"""Groups of `crossover` and `systems` in workers: a crash of one contender is a row, the others are measured."""

from __future__ import annotations

from dataclasses import replace

import jobs
import pytest

from pft_bench.apps.systems import Published, System
from pft_bench.harness.cases import SchedulesGroup, Settings, StepsGroup
from pft_bench.harness.cases.systems import SystemsGroup
from pft_bench.harness.measure.rounds import Plan
from pft_bench.harness.record import Status
from pft_bench.harness.sweep import Workers, run_isolated


@pytest.fixture
def planted(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """With what goes wrong, and with patience."""
    monkeypatch.setattr(workers, "plugins", (jobs.PLUGIN,))
    monkeypatch.setattr(workers, "timeout_s", 600.0)
    return workers


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings.make(
        schedules=["dense"],
        preset_name="small_x2",
        backends=["cpu"],
        levels=["model"],
        device="cpu",
        threads=1,
        lr_hw=(8, 8),
        plan=Plan(rounds=6, max_rounds=6, budget_s=0.1),
    )


def test_a_peer_that_crashes_is_a_row_however_early(planted: Workers, settings: Settings) -> None:
    peers = [System(name, Published(), architecture=name) for name in ("Enlarges", "Aborts", "CannotBeMade")]
    systems = (System("PFT", Published(), preset="small_x2"), *peers)
    records = run_isolated(planted, SystemsGroup(settings, systems), "e")
    found = {str(record.case.options["system"]): record for record in records}
    assert {name: record.status for name, record in found.items()} == {
        "PFT": Status.OK,
        "Enlarges": Status.OK,
        "Aborts": Status.CRASHED,
        "CannotBeMade": Status.CRASHED,
    }
    assert "SIGABRT" in str(found["Aborts"].reason)
    assert "exit code 3 during its check" in str(found["CannotBeMade"].reason)
    timing = found["Enlarges"].timing
    assert timing is not None
    assert timing.baseline is not None
    assert (timing.baseline.name, len(timing.baseline.control_s)) == ("PFT", 6)


def test_a_sparse_step_that_crashes_leaves_its_dense_one_measured(
    planted: Workers, settings: Settings
) -> None:
    dense, sparse = run_isolated(planted, StepsGroup(settings, "planted-segfault", 4), "e")
    assert (dense.status, sparse.status) == (Status.OK, Status.CRASHED)
    assert "SIGSEGV" in str(sparse.reason)
    assert dense.timing is not None


@pytest.mark.parametrize(
    ("schedules", "backends", "baseline"),
    [
        (["64,16", "dense"], ("cpu", "dense"), "dense cpu"),
        (["64,16", "32"], ("cpu", "dense"), "64,16 dense"),
        (["64,16", "32"], ("cpu",), "64,16 cpu"),
    ],
)
def test_schedules_are_held_against_dense_wherever_it_was_asked_for(
    schedules: list[str], backends: tuple[str, ...], baseline: str
) -> None:
    made = Settings.make(schedules=schedules, preset_name="small_x2", backends=["cpu"], device="cpu")
    assert SchedulesGroup(replace(made, backends=backends)).baseline == baseline
