"""`pft-bench counters`: counts, a prediction that says what it is, and one clear line where nothing can be counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
SMALL = ("--preset", "tiny_x2", "--lr", "8x8", "--sched", "16,8")


@pytest.fixture(autouse=True)
def _counting() -> None:
    pytest.importorskip("pft_bench._cuda_count")


def test_counts_and_prediction_of_a_model(pft_bench_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "counts.json"
    ended = pft_bench_command(
        "counters", *SMALL, "--dtype", "float16", "--mode", "train", "--sites", "--out", out
    )
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "Predicted from counts; nothing was measured. Doubted rates of H100 SXM: clock, l2." in said
    for name in (
        "layer 16 -> 8",
        "backward 16 -> 8",
        "attention_forward_dense",
        "floor",
        "Attention core of",
    ):
        assert name in said
    assert "dense_tile.cuh:" in said, "--sites names lines"
    written = json.loads(out.read_text())
    assert (written["chip"], written["predicted"]) == ("h100", True)
    assert all(launch["blocks_run"] <= launch["blocks"] for launch in written["launches"])


def test_what_was_counted_before_an_interruption_is_kept(
    pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.insight.counters import study

    right, counted = study.count_launches, []

    def count_launches(work: Any, *more: Any) -> Any:
        if counted:
            raise KeyboardInterrupt
        counted.append(work.title)
        return right(work, *more)

    monkeypatch.setattr(study, "count_launches", count_launches)
    out = tmp_path / "counts.json"
    assert pft_bench_command("counters", *SMALL, "--dtype", "float16", "--out", out).code == 130
    assert {launch["step"] for launch in json.loads(out.read_text())["launches"]} == {*counted}


def test_products_on_another_chip(pft_bench_command: Command) -> None:
    ended = pft_bench_command("counters", *SMALL, "--dtype", "float32", "--products", "--chip", "rtx4090")
    assert ended.code == 0, ended.err
    assert "spmm_transpose_split" in ended.out
    assert "RTX 4090" in ended.out
    assert "Attention core of" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--chip", "v100"), "--chip must be one of h100, h200, a100, rtx4090, got 'v100'"),
        (("--mode", "both"), "--mode must be one of infer, backward, train, got 'both'"),
        (("--dtype", "int8"), "--dtype must be one of float32, float16, bfloat16, got 'int8'"),
    ],
)
def test_bad_arguments_are_one_line(
    pft_bench_command: Command, arguments: tuple[str, str], what: str
) -> None:
    ended = pft_bench_command("counters", *SMALL, *arguments)
    assert (ended.code, what in " ".join(ended.err.split())) == (2, True)


def test_without_the_emulator_it_says_what_to_do(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ModuleNotFoundError("No module named 'pft_bench._cuda_count'")
    monkeypatch.setattr("pft_bench.backends._cuda_launch._loaded", lambda _: missing)
    ended = pft_bench_command("counters", *SMALL)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert "nothing can be counted here, its kernels were not built with this installation" in said
    assert "reinstall from source" in said
