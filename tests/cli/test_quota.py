"""Commands in a container with a CPU quota: threads, what is refused, what is recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_bench.common import container
from pft_bench.harness.measure.environment import environment, fingerprint, machine_fingerprint
from pft_bench.report.folder import machine_text

Run = Callable[..., Any]


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One and a half cores of eight."""
    root = tmp_path / "root"
    for name, text in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    monkeypatch.setattr(container, "ROOT", root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("VIPS_CONCURRENCY", "1")  # put back afterwards


@pytest.mark.usefixtures("quota")
def test_more_threads_than_the_quota_covers_are_refused_everywhere(
    pft_bench_command: Run, tmp_path: Path
) -> None:
    for command in (
        ("run", "--out", tmp_path / "run"),
        ("run", "--level", "threads", "--out", tmp_path / "run"),
        ("statistics",),
        ("fit", "--memory", "1GB"),
        ("selftest", "--verdicts", 1, "--out", tmp_path / "selftest"),
    ):
        ended = pft_bench_command(*command, "--threads", 3)
        assert ended.code == 2, command
        assert "threads must be at most 2 here, whose CPU quota is 1.5 cores, got 3" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quota")
def test_level_threads_goes_up_to_the_quota(tiny_run: Run) -> None:
    arguments = ("--level", "threads", "--backend", "cpu", "--sched", "5", "--list")
    listed = tiny_run(*arguments, "--threads", 2)
    assert (listed.code, listed.out.count("to run")) == (0, 6), listed
    assert tiny_run(*arguments, "--threads", 3).code == 2


@pytest.mark.usefixtures("quota")
def test_doctor_and_the_records_tell_it(pft_bench_command: Run) -> None:
    said = " ".join(pft_bench_command("doctor").out.split())
    assert "CPU quota: 1.5 cores; memory limit: none; threads: 1" in said
    assert "flags from outside: " in said
    found = environment()
    assert found["limits"] == {"cpu_quota": 1.5, "memory_bytes": None}
    assert found["now"]["cores"] == list(range(8))
    assert "(CPU quota: 1.5)" in machine_text(found)
    free = json.loads(json.dumps({**found, "limits": {"cpu_quota": None, "memory_bytes": None}}))
    assert fingerprint(free) != found["fingerprint"]
    assert machine_fingerprint(free) != found["machine"], "times under a quota are of another machine"
    free.pop("limits")
    assert machine_fingerprint(free) == machine_fingerprint({**free, "limits": {"cpu_quota": None}})


def test_without_a_quota_the_records_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ROOT", tmp_path)
    assert environment()["limits"] == {"cpu_quota": None, "memory_bytes": None}
