"""Every wrong kernel and timer is caught by the guard it is planted for, and by no other."""

from __future__ import annotations

import pytest
import torch

from pft_bench.harness.measure.audit import CpuProbe, audit, failures, require_sound
from pft_bench.harness.measure.timer import CpuTimer
from pft_bench.harness.selftest.kernels import PLANTED
from pft_bench.harness.selftest.mutant import GUARDS, Planted
from pft_bench.harness.selftest.mutation import false_alarms, run_kernel, run_timer
from pft_bench.harness.selftest.timers import TIMERS, PlantedTimer, WorkOutsideTheTimedRegion

pytestmark = pytest.mark.usefixtures("one_thread")

KERNELS = [planted for planted in PLANTED if not planted.needs_gpu or torch.cuda.is_available()]


@pytest.mark.parametrize("planted", KERNELS, ids=lambda planted: planted.name)
def test_a_wrong_kernel_is_killed_by_its_guard_and_survives_without_it(planted: Planted) -> None:
    assert run_kernel(planted).killed
    others = [guard for guard in GUARDS if guard != planted.guard]
    assert run_kernel(planted, others).killed, "its guard alone must see it"
    assert not run_kernel(planted, [planted.guard]).killed_by, "no other check may be what sees it"


@pytest.mark.parametrize("planted", TIMERS, ids=lambda planted: planted.name)
def test_a_wrong_timer_is_killed_by_its_questions_and_survives_without_them(planted: PlantedTimer) -> None:
    assert set(planted.fails) <= set(run_timer(planted).killed_by)
    assert not run_timer(planted, planted.fails).killed_by


def test_there_are_enough_and_their_names_differ() -> None:
    names = [planted.name for planted in [*PLANTED, *TIMERS]]
    assert len(names) == len(set(names))
    assert len(KERNELS) >= 16
    assert {planted.guard for planted in PLANTED} == set(GUARDS)


def test_gpu_mutants_are_skipped_with_a_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert [run_kernel(planted).skipped for planted in PLANTED if planted.needs_gpu] == [
        "needs a GPU, and PyTorch sees none"
    ]


def test_right_kernels_and_timers_raise_no_alarm() -> None:
    assert false_alarms() == []


def test_an_unsound_timer_may_not_time() -> None:
    with pytest.raises(RuntimeError, match="whole call"):
        require_sound(WorkOutsideTheTimedRegion())
    require_sound(CpuTimer())
    assert not failures(audit(CpuTimer(), CpuProbe()))
