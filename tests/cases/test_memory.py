"""The predicted peak of a process against the measured one, in fresh processes; and the input that `fit` finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made import tiny_config

from pft_bench.backends import get
from pft_bench.cli.fit import largest_input
from pft_bench.harness.cases import Settings
from pft_bench.harness.cases.memory import FootprintGroup, predicted_process_bytes
from pft_bench.harness.measure.results import Rejection
from pft_bench.harness.record import Status, read_records
from pft_bench.harness.sweep import Workers, run_isolated
from pft_bench.model import PRESETS

COMMITTED = Path(__file__).parents[2] / "reports" / "data" / "2026-11-23_classical_x2_360x640_memory"


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as made:
        yield made


def settings_of(preset: str, schedule: str, size_hw: tuple[int, int]) -> Settings:
    return Settings.make(
        schedules=[schedule], preset_name=preset, backends=["cpu"], device="cpu", threads=2, lr_hw=size_hw
    )


@pytest.mark.parametrize(
    ("preset", "schedule", "size_hw"),
    [
        # Two rows of windows in two strips; 268 MiB above the process. The paper's schedule.
        ("light_x2", "paper", (64, 512)),
        ("classical_x3", "32", (96, 64)),
    ],
)
def test_prediction_within_a_tenth(
    workers: Workers, preset: str, schedule: str, size_hw: tuple[int, int]
) -> None:
    settings = settings_of(preset, schedule, size_hw)
    peaks = []
    # What the allocator leaves lying between pieces differs from run to run, by a tenth at these sizes, and only
    # ever adds: six runs of the second case peaked at 597 to 667 MB. So the least of a few is held against the sum.
    for _ in range(8):
        # The check comes after the peak and takes longer than the forward pass: it has a test of its own.
        (record,) = run_isolated(workers, FootprintGroup(settings, check=False), "test")
        assert record.status is Status.OK, record.reason
        measured, predicted = record.memory.peak_process_bytes, record.memory.predicted_peak_bytes
        assert measured
        assert predicted
        peaks.append(measured)
        if predicted == pytest.approx(measured, rel=0.1):
            break
    assert predicted == pytest.approx(min(peaks), rel=0.1)
    assert record.timing is None


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_a_model_that_computes_something_else_has_no_peak(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny_x2", tiny_config(16, 5))
    right = get("cpu").attention_forward
    monkeypatch.setattr(get("cpu"), "attention_forward", lambda x: (right(x)[0] + error, *right(x)[1:]))
    (record,) = FootprintGroup(settings_of("tiny_x2", "16,5", (8, 8))).run("e").records
    assert len(record.checks) > 2
    assert record.status is (Status.FAILED if error else Status.OK)
    assert bool(record.reason and "attention out" in record.reason) == bool(error)
    assert (record.memory.peak_process_bytes is None) == bool(error)


def test_it_is_the_case_of_the_committed_run_and_a_death_is_its_row() -> None:
    (committed,) = read_records(COMMITTED / "records.jsonl").records
    group = FootprintGroup(settings_of("classical_x2", "paper", (360, 640)))
    assert {name: case.case_id for name, case in group.cases.items()} == {"cpu": committed.case_id}
    (row,) = group.run("e", lost={"cpu": Rejection("oom", "killed")}).records
    assert (row.status, row.reason, row.case_id) == (Status.OOM, "killed", committed.case_id)


def test_the_largest_input_fits_and_a_larger_one_does_not() -> None:
    config = PRESETS["classical_x2"]

    def predict(size_hw: tuple[int, int]) -> int:
        return predicted_process_bytes(config, size_hw, "cpu", 2, process_bytes=4 * 10**8)

    found = largest_input(predict, 8 * 10**9, (16, 9))
    assert found is not None
    height, width = found
    assert abs(height - width * 9 / 16) <= 0.5
    assert found >= (360, 640)  # the paper's x2 image fits 8 GB
    assert predict(found) <= 8 * 10**9 < predict((height + 32, width + 32))
    assert largest_input(predict, 4 * 10**8, (16, 9)) is None
    small = predict((32, 32))
    assert largest_input(predict, small, (1, 1)) == (32, 32)
