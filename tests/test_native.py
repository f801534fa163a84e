"""Loading a compiled module leaves the arithmetic of the process as it was, or the module is not used."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from pft_bench.common import native
from pft_bench.harness.measure.environment import environment


def test_this_build_left_denormals_on() -> None:
    assert not native.flushes_denormals()
    assert native.load_native("_cpu").__name__ == "pft_bench._cpu"
    assert environment()["flushes_denormals"] is False


def test_a_module_that_switches_denormals_off_is_refused_and_they_are_on_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loads(name: str) -> ModuleType:
        torch.set_flush_denormal(True)
        return ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", loads)
    for _ in range(2):  # the second time from memory, by the same words
        with pytest.raises(
            ImportError, match=r"pft_bench._planted switches denormal numbers off .* -ffast-math"
        ):
            native.load_native("_planted")
        assert not native.flushes_denormals()
    native._found.pop("_planted")


def test_whoever_switched_them_off_before_is_recorded_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", ModuleType)
    torch.set_flush_denormal(True)
    try:
        assert native.load_native("_planted").__name__ == "pft_bench._planted"
        assert native.flushes_denormals()
        assert environment()["flushes_denormals"] is True
    finally:
        torch.set_flush_denormal(False)
        native._found.pop("_planted")


def test_what_does_not_load_says_so_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="_never_built"):
            native.load_native("_never_built")
    native._found.pop("_never_built")
