"""`pft-bench evaluate` on two small photographs and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    timing = ("--rounds", 6, "--budget", 0.001, "--lr", "8x8", "--threads", 1, "--images", "--no-isolate")
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
    baseline, *others = records
    assert {record.timing.baseline.name for record in others} == {"dense cpu"}
    assert len(baseline.timing.control_s) == 6
    environment = json.loads((out / "environment.json").read_text())[baseline.environment]
    assert environment["now"]["roof"]
    assert "on 8x8 pixels: checks, then at most 0.001 s of timing" in ended.out
    assert "speed-up over dense cpu, in the same rounds" in ended.out
    verified = pft_bench_command("verify", out)
    assert verified.code == 0
    assert {"quality.jsonl", "quality.csv", "plan.json", "files.json"} <= set(
        verified.out.replace(",", "").split()
    )
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
    from pft_bench.harness.cases import SchedulesGroup

    def fails(self: SchedulesGroup) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SchedulesGroup, "contenders", fails)
    out = tmp_path / "out"
    timing = ("--lr", "8x8", "--rounds", 6, "--no-isolate")
    ended = pft_bench_command("evaluate", "--weights", weights, "--data", sets, "--out", out, *timing)
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


def test_a_killed_evaluation_goes_on_where_it_was(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", "--weights", weights, "--data", sets, "--out", out, "--rounds", 6,
                 "--budget", 0.001, "--lr", "8x8", "--threads", 1, "--no-isolate")  # fmt: skip
    assert pft_bench_command(*arguments).code == 0
    path, records = out / "quality.jsonl", out / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + lines[2][:50])  # killed while a row was being written
    records.unlink()

    edited = sets / "Set5" / "HR" / "chelsea.png"
    before, pixels = edited.read_bytes(), np.zeros((33, 40, 3), np.uint8)
    Image.fromarray(pixels).save(edited)
    ended = pft_bench_command(*arguments, "--resume")
    assert (ended.code, "--data: stored 2 images (sha256 " in ended.err) == (2, True), ended
    edited.write_bytes(before)
    saved, state = weights.read_bytes(), torch.load(weights, weights_only=True)
    state["params_ema"]["conv_first.bias"] += 1
    torch.save(state, weights)
    ended = pft_bench_command(*arguments, "--resume")
    assert (ended.code, "--weights: stored tiny.pth (sha256 " in ended.err) == (2, True), ended
    weights.write_bytes(saved)
    assert path.read_bytes() == lines[0] + lines[1] + lines[2][:50], "nothing is touched before it is sure"

    ended = pft_bench_command(*arguments, "--resume")
    assert ended.code == 0, ended
    assert path.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    rows = read_rows(path)
    assert len({(row.dataset, row.image, row.variant) for row in rows}) == len(rows) == 4
    assert len(read_records(records).records) == 1

    monkeypatch.setattr(
        "pft_bench.apps.quality.variants.model_row", lambda *_, **__: pytest.fail("restored again")
    )
    monkeypatch.setattr(
        "pft_bench.harness.cases.SchedulesGroup.contenders", lambda self: pytest.fail("measured again")
    )
    again = pft_bench_command(*arguments, "--resume")
    assert again.code == 0, again
    table = "Quality on Y"
    assert again.out[again.out.index(table) :] == ended.out[ended.out.index(table) :]


def test_other_schedules_may_join_an_evaluation(
    pft_bench_command: Command, weights: Path, sets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", "--weights", weights, "--data", sets / "Set5", "--out", out, "--rounds", 0)
    assert pft_bench_command(*arguments).code == 0
    ended = pft_bench_command(*arguments, "--resume", "--sched", "16,3")
    assert ended.code == 0, ended
    assert [row.schedule for row in read_rows(out / "quality.jsonl")] == ["bicubic", "16,5", "16,3"]
    path = out / "environment.json"
    (known,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({known["fingerprint"]: {**known, "code": "0" * 12}}))
    ended = pft_bench_command(*arguments, "--resume")
    assert (ended.code, f"code: stored {'0' * 12}" in ended.err) == (2, True), "rows of other code stay alone"
