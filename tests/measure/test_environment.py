"""The environment: complete, JSON, stable, and never an exception."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from checkout import needs_git

from pft_bench.harness.measure import environment as module
from pft_bench.harness.measure.environment import environment, fingerprint
from pft_bench.harness.measure.flops import counted_flops


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return environment()


def test_it_is_json_and_names_what_matters(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["cpu"]["model"]
    assert found["cpu"]["cores_logical"] == psutil.cpu_count()
    assert found["memory_bytes"] > 0
    assert found["libraries"]["torch"] == torch.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert set(found["builds"]) == {"pft_bench._cpu", "pft_bench._cuda"}


def test_fingerprint_ignores_the_minute_and_sees_the_rest(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(found["fingerprint"]) == 12
    assert fingerprint({**found, "now": {"load_average": [9, 9, 9]}}) == found["fingerprint"]
    assert fingerprint({**found, "memory_bytes": 1}) != found["fingerprint"]
    monkeypatch.setenv("OMP_PROC_BIND", "planted")
    other = environment()
    assert other["variables"]["OMP_PROC_BIND"] == "planted"
    assert other["fingerprint"] != found["fingerprint"]
    assert other["machine"] == found["machine"]


def test_missing_everything_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise OSError("not here")

    monkeypatch.setattr(module, "_CPU", Path("/nonexistent"))
    monkeypatch.setattr(Path, "read_text", broken)
    monkeypatch.setattr(subprocess, "run", broken)
    for name in ("cpu_count", "virtual_memory", "cpu_freq"):
        monkeypatch.setattr(psutil, name, broken)
    monkeypatch.setattr(os, "getloadavg", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    bare = environment()
    json.dumps(bare)
    assert bare["git"] is None
    assert bare["memory_bytes"] is None
    assert bare["gpu"] is None


def test_gpu_is_described_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count, total_memory = "Planted GPU", 9, 0, 132, 1 << 36

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    gpu = environment()["gpu"]
    assert (gpu["name"], gpu["compute_capability"], gpu["l2_bytes"]) == ("Planted GPU", "9.0", None)


def test_build_info_of_a_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def build_info() -> dict[str, str]:
            return {"compiler": "GNU 12.2", "flags": "-O3"}

        @staticmethod
        def isa() -> str:
            return "avx2"

    monkeypatch.setitem(sys.modules, "pft_bench._cpu", Module)
    assert environment()["builds"]["pft_bench._cpu"] == {
        "build_info": {"compiler": "GNU 12.2", "flags": "-O3"},
        "isa": "avx2",
    }


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@needs_git
def test_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "pft_bench" / "harness" / "measure" / "environment.py"
    here.parent.mkdir(parents=True)
    here.write_text("# one\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(module, "__file__", str(here))
    assert module._commit() == {"commit": _git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    here.write_text("# two\n")
    found = module._commit()
    assert found is not None
    assert found["dirty"] is True


@needs_git
def test_an_installed_copy_does_not_take_the_commit_of_the_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / ".venv" / "lib" / "pft_bench" / "harness" / "measure" / "environment.py"
    here.parent.mkdir(parents=True)
    here.write_text("")
    _git(tmp_path, "init", "-q")
    monkeypatch.setattr(module, "__file__", str(here))
    assert module._commit() is None


def test_counted_flops_are_two_per_multiply_add() -> None:
    a, b = torch.empty(3, 5, 7, device="meta"), torch.empty(3, 7, 11, device="meta")
    assert counted_flops(lambda: a @ b) == 2 * 3 * 5 * 7 * 11
    assert counted_flops(lambda: a + a) == 0


@pytest.mark.parametrize("biased", [False, True])
def test_counted_flops_of_attention_are_those_of_its_two_products(biased: bool) -> None:
    """PyTorch's own counter sees nothing in the kernel that its attention takes on a CPU."""
    q, k, v = (torch.randn(2, 3, tokens, dim) for tokens, dim in ((8, 4), (16, 4), (16, 4)))
    bias = torch.randn(3, 8, 16) if biased else None
    call = torch.nn.functional.scaled_dot_product_attention
    assert counted_flops(lambda: call(q, k, v, bias)) == 2 * (2 * 3 * 8 * 16) * (4 + 4)
