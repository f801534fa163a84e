"""What all tests share. Builders of inputs are in made.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IN_WORKER:
    # As many threads as ever, but those that wait let the other worker have the core. Read when OpenMP is loaded, which
    # is with torch; what a test starts inherits it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest  # noqa: E402
import torch  # noqa: E402
from checkout import foreign_checkout  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import pft_bench  # noqa: E402

# Deadlines measure the machine, not the code; a failure of an unchanged commit helps nobody;
# a fixture that only sets the thread count may serve all examples.
settings.register_profile(
    "pft", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pft")

TESTS = Path(__file__).parent
ALONE = (
    *("measure/test_timer.py", "measure/test_peak_memory.py"),
    # a rehearsal of the GPU session audits its timer
    "maintain/test_gpu_session.py::test_a_rehearsal_goes_through_every_step_on_a_bare_machine",
    "maintain/test_gpu_session.py::test_verify_accepts_the_records_of_a_rehearsal",
    "maintain/test_gpu_session.py::test_counters_stand_beside_those_of_the_profiler",
    "selftest/test_mutation.py::test_a_wrong_timer_is_killed_by_its_questions_and_survives_without_them",
    "selftest/test_mutation.py::test_right_kernels_and_timers_raise_no_alarm",
    "selftest/test_mutation.py::test_an_unsound_timer_may_not_time",
    "selftest/test_trials.py::test_one_of_each_for_real",
    "cli/test_run.py::test_a_timer_that_forgets_half_of_the_work_ends_the_run",
    "cli/test_start_time.py",
    "compare/test_design.py::test_real_calls_and_a_failed_check",
    "compare/test_versions.py::test_a_planted_slowdown_is_found_a_crash_is_a_row_and_the_rest_is_not_blamed",
    "ops/test_cost.py",
    # holds times against the roof of the same run, which another test's work lowers
    "cli/test_systems_command.py::test_mechanisms_alone",
)
"""Files and tests that read a clock against a limit, or the peak of a process's memory: never beside another test."""


def pytest_configure() -> None:
    """A clone copied with its environment has an editable install of the original, which would be tested unseen."""
    root = foreign_checkout(Path(pft_bench.__file__), TESTS)
    if root is not None:
        pytest.exit(
            f"these are the tests of {TESTS.parent}, and pft_bench is that of {root}: install it here", 2
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m alone`, files that have none of them are not even imported: that takes longer than most tests."""
    if config.option.markexpr != "alone" or not collection_path.name.startswith("test_"):
        return None
    return (
        collection_path.relative_to(TESTS).as_posix() not in {name.partition("::")[0] for name in ALONE}
        or None
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them; and in a worker begin with what takes long, so that no worker ends with it."""
    for item in items:
        if "alone" in item.keywords:
            raise pytest.UsageError(
                f"{item.nodeid} is marked alone: name it in ALONE, by which its file is found"
            )
        path = item.path.relative_to(TESTS) if item.path.is_relative_to(TESTS) else item.path
        if path.as_posix() in ALONE or f"{path.as_posix()}::{getattr(item, 'originalname', '')}" in ALONE:
            item.add_marker("alone")
    if IN_WORKER:
        items.sort(key=seconds, reverse=True)


def seconds(item: pytest.Item) -> float:
    """About how long a test marked slow takes on two cores, 0 for all others."""
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else mark.args[0] if mark.args else 10.0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if IN_WORKER and "alone" in item.keywords:
        pytest.fail("reads a clock or a peak of memory: run it without -n, as make test does", pytrace=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads; one also leaves the other cores to whoever shares the machine."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)
