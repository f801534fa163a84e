"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


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
