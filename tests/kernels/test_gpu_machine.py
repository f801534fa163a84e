"""What somebody with a GPU, or without one, is told: nothing that did not run counts as passed."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from pft_bench.backends._cuda_launch import missing_module
from pft_bench.backends.cuda import CudaBackend

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "cuda" / "gpu_test.py"


@pytest.fixture
def gpu_test() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sanitizer_that_is_not_there_is_a_failure(
    gpu_test: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert gpu_test.sanitize() > 0
    assert "NOT RUN" in capsys.readouterr().out


def test_a_module_that_was_not_built_is_named_in_words() -> None:
    backend = CudaBackend()
    backend._native = ModuleNotFoundError("No module named 'pft_bench._cuda'")
    reason = backend.available()
    assert reason is not None
    assert reason.startswith(
        "its kernels were not built with this installation; where there is an NVIDIA GPU"
    )
    assert missing_module(ImportError("libcudart.so.13: cannot open shared object file")).endswith(
        "libcudart.so.13: cannot open shared object file"
    )
