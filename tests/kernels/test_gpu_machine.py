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


def test_the_counters_of_a_gpu_stand_beside_those_of_the_emulator(gpu_test: ModuleType) -> None:
    """The whole step on small shapes; what Nsight Compute would print is made up: each launch, one wavefront."""
    pytest.importorskip("pft_bench._cuda_count")
    kernels = ["sddmm_resident", "spmm_resident", "spmm_transpose_tiles", "attention_forward_dense",
               "attention_forward_tiled", "attention_forward_dense", "attention_forward_sparse"]  # fmt: skip
    metric = "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"
    lines = [f'"{n}","{kernel}","{metric}","","1"' for n, kernel in enumerate(kernels)]
    text = "\n".join(['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"', *lines])
    rows, said = gpu_test.counter_rows("NVIDIA H100 80GB HBM3", True, lambda: text)
    assert said == "counters, predicted for H100 SXM"
    wavefronts = [row for row in rows if row["what"] == "wavefronts"]
    assert [row["kernel"] for row in wavefronts] == kernels
    assert all(int(row["counted"].replace(",", "")) > 1 and row["profiled"] == "1" for row in wavefronts)


def test_why_there_are_no_counters_is_said(gpu_test: ModuleType) -> None:
    pytest.importorskip("pft_bench._cuda_count")
    assert gpu_test.counter_rows("x", True, None) == (
        [],
        "no counters: Nsight Compute (ncu) is not installed",
    )
    denied = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    rows, said = gpu_test.counter_rows("x", True, lambda: denied)
    assert (rows, "ERR_NVGPUCTRPERM" in said) == ([], True)


@pytest.mark.parametrize(
    ("device", "chip"),
    [("NVIDIA H100 PCIe", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"),
     ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA T4", None)],
)  # fmt: skip
def test_chips_are_known_by_their_device_name(gpu_test: ModuleType, device: str, chip: str | None) -> None:
    found = gpu_test.chip_of(device)
    assert (found.name if found else None) == chip
