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
    *("measure", "sweep", "selftest", "maintain"),
    # `run` begins with an audit of its timer.
    *("cli/test_run.py", "cli/test_resume.py", "cli/test_evaluate.py", "cli/test_threads_level.py"),
    *("compare/test_design.py", "compare/test_versions.py"),
    *(
        "ops/test_cost.py",
        "cases/test_memory.py",
        "cases/test_threads.py",
        "model/test_tiles.py",
        "model/test_strips.py",
    ),
)
"""Files and folders whose tests read a clock against a limit, or the peak of memory: never beside another test."""


def pytest_configure() -> None:
    """A clone copied with its environment has an editable install of the original, which would be tested unseen."""
    root = foreign_checkout(Path(pft_bench.__file__), TESTS)
    if root is not None:
        pytest.exit(
            f"these are the tests of {TESTS.parent}, and pft_bench is that of {root}: install it here", 2
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them; and in a worker begin with what takes long, so that no worker ends with it."""
    for item in items:
        path = item.path.relative_to(TESTS) if item.path.is_relative_to(TESTS) else item.path
        if any(path.is_relative_to(name) for name in ALONE):
            item.add_marker("alone")
    if IN_WORKER:
        items.sort(key=lambda item: "slow" not in item.keywords)


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
