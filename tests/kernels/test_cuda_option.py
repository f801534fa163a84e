"""PFT_CUDA, as the build reads it: any case, and nothing else than its words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ENABLE = Path(__file__).resolve().parents[2] / "kernels" / "cuda" / "enable.cmake"


def read_option(value: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake on PATH; pip brings its own to a build")
    return subprocess.run([cmake, f"-DPFT_CUDA={value}", "-P", str(ENABLE)], capture_output=True, text=True)


@pytest.mark.parametrize("value", ["off", "OFF", "Off"])
def test_off_in_any_case_ends_there(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFT_CUDA", raising=False)
    assert read_option(value).returncode == 0
    monkeypatch.setenv("PFT_CUDA", value)  # which goes before the option
    assert read_option("perhaps").returncode == 0


def test_another_word_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFT_CUDA", raising=False)
    ended = read_option("perhaps")
    assert ended.returncode != 0
    assert "PFT_CUDA must be off, auto, all, pypi or pypi-all, got 'perhaps'" in " ".join(
        ended.stderr.split()
    )


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("NVCC_APPEND_FLAGS", "-lineinfo --use_fast_math"),
        ("NVCC_PREPEND_FLAGS", "-ftz=true"),
        ("CUDAFLAGS", "-Xcompiler=-march=native"),
        ("CUDAFLAGS", "--prec-div false"),
    ],
)
def test_flags_that_change_the_kernels_are_refused(
    name: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PFT_CUDA", raising=False)
    monkeypatch.setenv(name, flags)
    ended = read_option("all")
    assert ended.returncode != 0
    assert f"the flags '{flags}'" in " ".join(ended.stderr.split())
    assert read_option("off").returncode == 0, "nothing of CUDA is built"


def test_other_flags_of_nvcc_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without nvidia-smi: the script ends where it finds no GPU."""
    monkeypatch.delenv("PFT_CUDA", raising=False)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo -allow-unsupported-compiler -ftz=false")
    ended = read_option("auto")
    assert "the flags" not in ended.stderr, ended.stderr
