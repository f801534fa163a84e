"""Whole sweeps: planted failures, kills at random moments, shares, torchrun."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from jobs import TINY

from pft_bench.harness.record import Status, lock_folder, read_folder, read_records

Start = Callable[..., BaseProcess]

PLANTED = {
    "planted-oom": Status.OOM,
    "planted-segfault": Status.CRASHED,
    "planted-abort": Status.CRASHED,
    "planted-hang": Status.TIMEOUT,
    "planted-wrong": Status.FAILED,
}
PATIENCE_S = 300
"""For a process that takes a second or two on an idle machine."""


def rows(folder: Path) -> dict[tuple[str, int | None, str], Status]:
    """(op, K, backend) -> status of all records of a finished sweep, each of them once."""
    records = read_records(folder / "records.jsonl").records
    assert len({record.case_id for record in records}) == len(records), "a case twice"
    return {(record.case.op, record.case.k, record.case.backend): record.status for record in records}


def finish(process: BaseProcess) -> int | None:
    process.join(PATIENCE_S)
    return process.exitcode


def wait_for_worker(process: BaseProcess) -> None:
    """Until the supervisor's server has a worker, or the process has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while process.is_alive() and time.monotonic() < deadline:
        try:
            servers = psutil.Process(process.pid).children()
            if any(server.children() for server in servers if "server.main()" in " ".join(server.cmdline())):
                return
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)


@pytest.mark.slow
def test_planted_failures_are_rows_and_all_else_is_measured_even_after_a_kill(
    start_program: Start, tmp_path: Path
) -> None:
    backends = [word for name in PLANTED for word in ("--backend", name)]
    arguments = (*backends, "--sched", "16", "--memory-limit", "1G", "--timeout", 4, "--out", tmp_path)
    generator = random.Random(5)
    supervisor = start_program(*arguments)
    wait_for_worker(supervisor)
    time.sleep(generator.uniform(0, 3))
    supervisor.kill()
    supervisor.join()
    assert finish(start_program(*arguments, "--resume")) == 1
    found = rows(tmp_path)
    assert found == {
        ("sddmm", 16, "dense"): Status.OK,
        ("sddmm", 16, "sampled_addmm"): Status.OK,
        **{("sddmm", 16, name): status for name, status in PLANTED.items()},
        ("spmm", 16, "dense"): Status.OK,
        ("spmm", 16, "embedding_bag"): Status.OK,
        **{("spmm", 16, name): Status.OK for name in PLANTED},
    }
    reasons = {r.case.backend: r.reason for r in read_folder(tmp_path).records if r.status is not Status.OK}
    for name, words in (
        ("planted-oom", "can't allocate memory"),
        ("planted-segfault", "SIGSEGV"),
        ("planted-abort", "SIGABRT (Aborted) during its warm-up at planted.py"),
        ("planted-hang", "no progress for 4 s during its check at planted.py"),
        ("planted-wrong", "sddmm operator"),
    ):
        assert words in str(reasons[name])
    logs = {path.name.rsplit("-k16", 1)[0]: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert "planted: the queue is full" in logs["sddmm-planted-abort"]
    assert "in sddmm" in logs["sddmm-planted-segfault"]


def grown(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size > size


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(start_program: Start, tmp_path: Path) -> None:
    kept_entries = (16, 9, 5)
    schedules = [word for k in kept_entries for word in ("--sched", f"16,{k}")]
    arguments = ("--backend", "cpu", *schedules, "--no-isolate", "--out", tmp_path, "--resume")
    path = tmp_path / "records.jsonl"
    generator = random.Random(11)
    kept = b""
    for kill in range(6):
        supervisor = start_program(*arguments)
        if kill % 3 == 2:  # between the records of one group, mostly
            while supervisor.is_alive() and not grown(path, len(kept)):
                time.sleep(0.0001)
        else:
            time.sleep(generator.uniform(0, 2))
        supervisor.kill()
        assert finish(supervisor) in (-9, 0)
        now = path.read_bytes() if path.exists() else b""
        assert now.startswith(kept), f"kill {kill} changed what was measured before"
        kept = now
    assert kept
    assert finish(start_program(*arguments)) == 0
    assert rows(tmp_path) == {
        (op, k, name): Status.OK
        for op, peer in (("sddmm", "sampled_addmm"), ("spmm", "embedding_bag"))
        for k in kept_entries
        for name in ("dense", "cpu", peer, "row_reads")
    }
    assert (tmp_path / "records.jsonl").read_bytes().startswith(kept)


@pytest.mark.slow
def test_torchrun_yields_the_same_set_of_records_as_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    program = [sys.executable, "-c", "import jobs; jobs.quick(); from pft_bench.cli import main; main()"]
    arguments = [*TINY, "--sched", "16,5", "--backend", "cpu", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MASTER_PORT": "0"}
    ended = subprocess.run(
        [*command, *program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 groups to run" in ended.stdout, "a rank takes half of the four"
    assert sorted(path.name for path in tmp_path.glob("records*")) == ["records.jsonl"]
    listed = subprocess.run(
        [*program, *arguments, "--list"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    planned = [line.split() for line in listed.stdout.splitlines()[1:] if line.strip()]
    assert len(planned) == 16
    assert {words[0] for words in planned} == {"done"}
    records = read_records(tmp_path / "records.jsonl").records
    assert [record.case_id for record in records] == [words[1] for words in planned]
    assert all(record.status is Status.OK for record in records)
    assert ended.stdout.count("Sparse products") == 1, "one rank reports"
    with lock_folder(tmp_path):
        pass
