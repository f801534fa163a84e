"""Tile sizes: overrides win, tuning measures once and only what fits; and the backend says when it can run."""

import json
from contextlib import nullcontext

import pytest

pytest.importorskip("triton")

import numpy
import torch
import triton
from pft_bench.kernels.triton.config import Config, choose, tuned
from pft_bench.kernels.triton.launch import recording

from pft_bench.backends import get
from pft_bench.backends.triton import interpreter_limit


class FakeLaunch:
    """A launch that takes a known time and shared memory."""

    def __init__(self, config):
        self.elapsed_ms, self.shared = config.rows, 1024 * config.cols

    def run(self):
        raise AssertionError("nothing runs here")

    def shared_bytes(self):
        return self.shared


def test_explicit_beats_environment_beats_default(monkeypatch):
    monkeypatch.setenv("PFT_TRITON_CONFIG", '{"spmm": {"rows": 8}}')
    default = Config(rows=16, terms=2)
    assert choose("spmm", default) == Config(rows=8, terms=2)
    assert choose("sddmm", default) == default
    assert choose("spmm", default, Config(rows=4)) == Config(rows=4)


@pytest.mark.parametrize("text", ["{", '["spmm"]', '{"spmm": 3}', '{"spmm": {"row": 8}}'])
def test_a_wrong_override_is_an_error(monkeypatch, text):
    monkeypatch.setenv("PFT_TRITON_CONFIG", text)
    with pytest.raises(ValueError, match=r"PFT_TRITON_CONFIG|a Triton config has"):
        choose("spmm", Config())


def test_an_override_reaches_the_kernel(monkeypatch):
    monkeypatch.setenv("PFT_TRITON_CONFIG", '{"spmm": {"rows": 8, "warps": 2}}')
    a, v = torch.empty(1, 9, 3, device="meta"), torch.empty(1, 9, 13, device="meta")
    with recording() as launches:
        get("triton").spmm(a, v, torch.empty(1, 9, 3, dtype=torch.int16, device="meta"))
    (launch,) = launches
    assert (launch.constants["ROWS"], launch.config.warps, launch.grid) == (8, 2, 2)


@pytest.mark.parametrize(
    ("batch", "rows", "kept", "refused"),
    [(1, 2**16, 2**15, True), (2**31, 1, 3, True), (1, 2**16, 2**15 - 1, False), (2**30, 1, 3, False)],
)
def test_what_32_bit_offsets_or_a_grid_cannot_hold_is_refused(batch, rows, kept, refused):
    q, k = torch.empty(batch, rows, 13, device="meta"), torch.empty(batch, 2**15, 13, device="meta")
    index = torch.empty(batch, rows, kept, dtype=torch.int16, device="meta")
    refusal = pytest.raises(RuntimeError, match=r"sddmm_\w+: .* fewer than 2\^31")
    with recording() as launches, refusal if refused else nullcontext():
        get("triton").sddmm(q, k, index)
    assert len(launches) == (not refused)


def test_tuning_takes_the_fastest_that_fits_and_remembers(monkeypatch, tmp_path):
    monkeypatch.setenv("PFT_TRITON_CACHE", str(tmp_path / "deep" / "cache.json"))
    candidates = [Config(rows=16, cols=64), Config(rows=4, cols=64), Config(rows=1, cols=128)]
    measured = []

    def bench(launch):
        measured.append(launch.elapsed_ms)
        return launch.elapsed_ms

    best = tuned("a kernel", candidates, FakeLaunch, 99 * 1024, bench)
    assert best == candidates[1]
    assert measured == [16, 4]  # rows=1 would be fastest, but needs 128 KiB
    assert tuned("a kernel", candidates, FakeLaunch, 99 * 1024, bench) == best
    assert measured == [16, 4]
    assert list(json.loads((tmp_path / "deep" / "cache.json").read_text())) == ["a kernel"]


def test_without_a_gpu_it_is_for_checking_only_and_says_how(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend = get("triton")
    assert "TRITON_INTERPRET=1" in backend.available()
    assert backend.devices == {"cuda"}
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.available() == interpreter_limit()
    assert not backend.timed
    assert "never timed" in backend.summary


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "works"),
    [
        ("3.6.0", "2.4.6", False),
        ("3.6.0", "2.3.5", True),
        ("3.7.0", "2.4.6", True),
        ("3.10.0", "2.10.0", True),
    ],
)
def test_an_interpreter_that_numpy_breaks_says_what_to_install(
    monkeypatch, triton_version, numpy_version, works
):
    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(numpy, "__version__", numpy_version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = get("triton").available()
    assert (reason is None) == works
    assert works or "pip install 'triton>=3.7' or 'numpy<2.4'" in reason
