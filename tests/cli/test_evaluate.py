"""`pft-bench evaluate` on two small photographs and a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from skimage import data

import pft_bench
from pft_bench.apps.quality import Variant, psnr_y, read_rows
from pft_bench.harness.record import Status, read_records

Command = Callable[..., Any]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for number, name in enumerate(("chelsea", "coffee")):
        path = tmp_path / "data" / ("Set5", "Set14")[number] / "HR" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(getattr(data, name)()[100:133, 100:140]).save(path)
    return tmp_path / "data"


def test_quality_latency_and_memory(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--sched", "dense", "--sched", "16,3", "--backend", "cpu", "--backend", "dense")
    timing = ("--rounds", 6, "--budget", 0.5, "--lr", "8x8", "--threads", 1, "--images")
    ended = pft_bench_command(
        "evaluate", "--weights", weights, "--data", sets, "--out", out, *arguments, *timing
    )
    assert ended.code == 0, ended
    rows = read_rows(out / "quality.jsonl")
    variants = {Variant(s, b) for s in ("dense", "16,3") for b in ("cpu", "dense")}
    assert {row.variant for row in rows} == {Variant.bicubic(), *variants}
    assert [row.image for row in rows[::5]] == ["chelsea", "coffee"]
    assert len(pd.read_csv(out / "quality.csv")) == len(rows) == 10
    records = read_records(out / "records.jsonl").records
    assert {(r.case.options["sched"], r.case.backend) for r in records} == {
        (variant.schedule, variant.backend) for variant in variants
    }
    assert all(record.status is Status.OK and record.checks for record in records)
    assert all(record.memory.peak_allocated_bytes for record in records)
    for name in ("latency_Set5", "latency_Set14", "memory_Set5", "memory_Set14"):
        assert (out / f"quality_vs_{name}.png").stat().st_size > 10_000
    psnr = {(row.dataset, row.variant.name): row.psnr_db for row in rows}
    for text in (f"{psnr['Set5', '16,3 cpu']:.2f}", f"{psnr['Set14', 'bicubic']:.2f}", "Set5 (1)", "ms"):
        assert text in ended.out
    # the schedule matters and the backend does not
    assert abs(psnr["Set5", "16,3 cpu"] - psnr["Set5", "16,3 dense"]) < 0.01
    assert psnr["Set5", "16,3 cpu"] != psnr["Set5", "dense cpu"]


def test_the_rows_are_those_of_the_model(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = pft_bench_command(
        "evaluate", "--weights", weights, "--data", sets / "Set5", "--out", out, "--rounds", 0
    )
    assert ended.code == 0, ended
    assert not (out / "records.jsonl").exists()
    from pft_bench.apps.quality import find_datasets, load_pair

    low, high = (torch.from_numpy(part) for part in load_pair(find_datasets(sets, 2)[0].pairs[0], 2))
    assert high.shape == (32, 40, 3)
    with torch.no_grad():
        y = pft_bench.load(weights)(low.permute(2, 0, 1).unsqueeze(0) / 255)[0]
    restored = (y.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    row = read_rows(out / "quality.jsonl")[1]
    assert row.schedule == "16,5"
    assert row.psnr_db == pytest.approx(psnr_y(restored, high, 2), abs=1e-3)


def test_a_broken_image_does_not_stop_the_others(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path
) -> None:
    (sets / "Set5" / "HR" / "broken.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(sets / "Set5" / "HR" / "small.png")
    Image.new("RGB", (32, 32)).save(sets / "Set5" / "HR" / "moving.gif")
    ended = pft_bench_command(
        "evaluate", "--weights", weights, "--data", sets, "--out", tmp_path / "out", "--rounds", 0
    )
    assert ended.code == 1
    assert "no result: Set5 broken" in ended.out
    assert "at least 11 pixels" in ended.out
    assert "Set5 (1, 2 without)" in ended.out
    assert "Set5: left out, of formats that are not read here: 1 (moving.gif)" in ended.out
    assert "Set14: left out" not in ended.out
    assert "Set14 (1)" in ended.out


def test_a_failed_measurement_keeps_the_quality(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.apps.quality import VariantsGroup

    def fails(self: VariantsGroup) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(VariantsGroup, "contenders", fails)
    out = tmp_path / "out"
    ended = pft_bench_command(
        "evaluate", "--weights", weights, "--data", sets, "--out", out, "--lr", "8x8", "--rounds", 6
    )
    assert ended.code == 1
    (record,) = read_records(out / "records.jsonl").records
    assert record.status is Status.OOM
    assert "oom" in ended.out
    assert len(read_rows(out / "quality.jsonl")) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rounds", 3), "--rounds must be 0 or at least 6"),
        (("--budget", 0), "--budget must be positive"),
        (("--sched", "17"), "schedule"),
        (("--backend", "nothing"), "backend"),
        (("--data", "nowhere"), "there is no such folder"),
        (("--data", __file__), "--data must be a folder, got " + __file__ + ": that is a file"),
        (("--lr", "8"), "--lr must be HxW"),
    ],
)
def test_arguments_that_cannot_be_right(
    pft_bench_command: Command,
    weights: Path,
    sets: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    out = tmp_path / "out"
    ended = pft_bench_command("evaluate", "--weights", weights, "--data", sets, "--out", out, *arguments)
    assert (ended.code, out.exists()) == (2, False)
    assert said in ended.err


def test_results_are_never_mixed(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", "--weights", weights, "--data", sets, "--out", tmp_path / "out", "--rounds", 0)
    assert pft_bench_command(*arguments).code == 0
    ended = pft_bench_command(*arguments)
    assert (ended.code, "--out must be a new folder" in ended.err) == (2, True)
