"""`pft-bench run --level threads`: from the command line to the figure, and what goes on working with its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_bench.harness.cases import settings
from pft_bench.harness.record import read_records

Run = Callable[..., Any]
ARGUMENTS = ("--level", "threads", "--threads", 2, "--backend", "cpu", "--sched", "5")


def test_from_the_run_to_its_report_and_on(
    tiny_run: Run, drawn: None, pft_bench_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 2)
    folder = tmp_path / "run"
    listed = tiny_run(*ARGUMENTS, "--out", folder, "--list").out
    assert listed.count("to run") == 6
    assert "threads, layer 5 -> 5 on cpu" in listed
    ended = tiny_run(*ARGUMENTS, "--out", folder)
    assert ended.code == 0, ended
    assert "Threads (candidates -> kept of a layer, or the model)" in ended.out
    assert ended.out.count("cpu, 2 threads ") == 3 + 1, "three rows and the column of the model's stages"
    assert (folder / "threads.png").is_file()
    records = read_records(folder / "records.jsonl").records
    assert [(record.case.op, record.case.k, record.case.threads) for record in records] == [
        *(("progressive_attention", 5, count) for _ in range(2) for count in (1, 2)),
        *(("model", None, count) for count in (1, 2)),
    ]
    assert [record.case.shapes.get("candidates") for record in records] == [16, 16, 5, 5, None, None]

    assert pft_bench_command("report", folder).code == 0
    verified = pft_bench_command("verify", folder)
    assert verified.code == 0, verified.out
    assert "not checked" not in verified.out
    assert "not counted again" not in verified.out
    for name in ("summary.csv", "report.html", "report.md", "threads.svg"):
        assert name in verified.out
    (folder / "threads.svg").write_text((folder / "threads.svg").read_text().replace("ideal", "idea1"))
    assert pft_bench_command("verify", folder, "--no-recount").code == 1

    before = (folder / "records.jsonl").read_bytes()
    assert "0 groups to run" in tiny_run(*ARGUMENTS, "--out", folder, "--resume").out
    assert (folder / "records.jsonl").read_bytes() == before
    said = pft_bench_command("history", tmp_path).out
    assert said.count("cpu, 2 threads against 1") == 3, said


def test_one_core_is_a_clear_line_before_anything_is_written(
    tiny_run: Run, pft_bench_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 1)
    ended = tiny_run(*ARGUMENTS, "--out", tmp_path / "run")
    assert (ended.code, (tmp_path / "run").exists()) == (2, False)
    assert "level threads needs at least 2 cores, got a process that may use 1" in ended.err
    ended = pft_bench_command("compare", "--backends", "dense,cpu", "--level", "threads")
    assert ended.code == 2
    assert "compare takes levels op, layer and model, got threads" in ended.err
