"""The predicted peak of a process against the measured one, in fresh processes; and the input that `fit` finds."""

from __future__ import annotations

import pytest

from pft_bench.cli.fit import largest_input
from pft_bench.common.schedule import parse_schedule
from pft_bench.harness.cases.memory import footprint_case, measure_footprint, predicted_process_bytes
from pft_bench.harness.record import Status
from pft_bench.model import PRESETS


@pytest.mark.parametrize(
    ("preset", "schedule", "size_hw"),
    [
        # Two rows of windows in two strips; 268 MiB above the process. The paper's schedule.
        ("light_x2", "paper", (64, 512)),
        ("classical_x3", "32", (96, 64)),
    ],
)
def test_prediction_within_a_tenth(preset: str, schedule: str, size_hw: tuple[int, int]) -> None:
    config = PRESETS[preset]
    parsed = parse_schedule(schedule, config.depths, config.window_size**2)
    config = config.with_topk(parsed.num_topk)
    case = footprint_case(preset, config, schedule, size_hw, "cpu", 2)
    peaks = []
    # What the allocator leaves lying between pieces differs from run to run, by a tenth at these sizes, and only
    # ever adds: six runs of the second case peaked at 597 to 667 MB. So the least of a few is held against the sum.
    for attempt in range(8):
        # What the layers compute is checked once: it is the same in every run, and takes longer than the forward pass.
        record = measure_footprint(case, config, "test", check=attempt == 0)
        assert record.status is Status.OK, record.reason
        measured, predicted = record.memory.peak_process_bytes, record.memory.predicted_peak_bytes
        assert measured
        assert predicted
        assert len(record.checks) > 1 or attempt > 0
        peaks.append(measured)
        if predicted == pytest.approx(measured, rel=0.1):
            break
    assert predicted == pytest.approx(min(peaks), rel=0.1)
    assert record.timing is None


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
