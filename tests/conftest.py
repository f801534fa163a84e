"""What all tests share. Builders of inputs are in made.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Deadlines measure the machine, not the code; a failure of an unchanged commit helps nobody;
# a fixture that only sets the thread count may serve all examples.
settings.register_profile(
    "pft", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pft")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads; one also leaves the other cores to whoever shares the machine."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)
