"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pft_bench.backends import get


@pytest.fixture
def launched() -> Iterator[Callable[[Callable[[], object]], list[str]]]:
    """Names of the kernels that a call launches; nothing is computed."""
    emu = pytest.importorskip("pft_bench._cuda_emu")

    def names_of(call: Callable[[], object]) -> list[str]:
        emu.take_dry_launches()
        call()
        return [name for name, *_ in emu.take_dry_launches()]

    emu.configure(dry=True)
    yield names_of
    emu.configure()


@pytest.fixture
def emulator_defaults() -> Iterator[None]:
    """Whatever a test configures ends with it."""
    emu = pytest.importorskip("pft_bench._cuda_emu")
    emu.configure()
    yield
    emu.configure()


@pytest.fixture
def backend() -> Any:
    found = get("cuda-emu")
    assert found.available() is None
    return found
