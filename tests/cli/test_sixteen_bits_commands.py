"""`--dtype bfloat16` and `float16` on a CPU: every command that has the option, and what tells whether it pays."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pft_bench.apps.images import read_picture
from pft_bench.apps.quality import read_rows
from pft_bench.cli import doctor
from pft_bench.harness.measure import roof, shares

Command = Callable[..., Any]
DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "chelsea.png"
    path.parent.mkdir()
    Image.fromarray(data.chelsea()[100:164, 120:184]).save(path)
    return path


@DTYPES
def test_upscale_loses_no_grey_levels(
    pft_bench_command: Command, photograph: Path, tmp_path: Path, dtype: str
) -> None:
    made = {}
    for kind in ("float32", dtype):
        out = tmp_path / f"{kind}.png"
        ended = pft_bench_command("upscale", photograph, out, "--weights", "small_x2", "--dtype", kind)
        assert ended.code == 0, ended
        made[kind] = read_picture(out).pixels.astype(int)
    difference = np.abs(made["float32"] - made[dtype])
    assert difference.max() <= 2
    # 0.34 and 0.14; with the picture itself in 16 bits on its way in and out, 0.51 and 0.19.
    assert np.sqrt((difference**2).mean()) < {"bfloat16": 0.42, "float16": 0.16}[dtype]


@DTYPES
def test_evaluate_has_the_quality_of_float32(
    pft_bench_command: Command, photograph: Path, tmp_path: Path, dtype: str
) -> None:
    found = []
    for kind in ("float32", dtype):
        out = tmp_path / kind
        arguments = ("--weights", "small_x2", "--data", photograph.parent, "--rounds", 0, "--out", out)
        ended = pft_bench_command("evaluate", *arguments, "--dtype", kind)
        assert ended.code == 0, ended
        (row,) = [row for row in read_rows(out / "quality.jsonl") if row.backend]
        assert (row.backend, row.dtype) == ("cpu", kind)
        found.append(row.psnr_db)
    assert abs(found[1] - found[0]) <= 0.02, found


def test_run_measures_the_model_and_predicts_its_memory(tiny_run: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = tiny_run("--level", "model", "--sched", "dense", "--dtype", "bfloat16", "--out", out)
    assert ended.code == 0, ended
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    found = {record["case"]["backend"]: record for record in records}
    assert {record["status"] for record in records} == {"ok"}
    assert found["cpu"]["case"]["dtype"] == "bfloat16"
    assert found["cpu"]["memory"]["predicted_peak_bytes"] > 0
    assert found["dense"]["memory"]["predicted_peak_bytes"] is None


def test_fit_knows_sixteen_bits_of_cpu(pft_bench_command: Command) -> None:
    arguments = (
        "fit",
        "--preset",
        "light",
        "--scale",
        2,
        "--memory",
        "4GB",
        "--threads",
        1,
        "--lr",
        "320x320",
    )
    peaks = []
    for kind in ("float32", "bfloat16", "float16"):
        ended = pft_bench_command(*arguments, "--dtype", kind)
        assert ended.code == 0, ended
        assert kind in ended.out
        (peak,) = re.findall(r"predicted peak of the process\D+(\d+)", ended.out)
        peaks.append(int(peak))
    assert peaks[1] == peaks[2] < peaks[0]
    refused = pft_bench_command(*arguments, "--backend", "dense", "--dtype", "bfloat16")
    assert refused.code == 2
    assert "--dtype must be float32 for backend dense, whose needs in bfloat16 are not known" in refused.err
    refused = pft_bench_command(*arguments, "--dtype", "float64")
    assert refused.code == 2
    assert "got torch.float64" in refused.err


def test_compare_takes_two_dtypes(pft_bench_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "comparison.json"
    arguments = ("compare", "--preset", "tiny_x2", "--lr", "8x8", "--sched", "16,3", "--threads", 1)
    ended = pft_bench_command(
        *arguments, "--level", "layer", "--dtypes", "float32,bfloat16", "--budget", 0.2, "--out", out
    )
    assert ended.code in (0, 3, 4, 5), ended
    found = json.loads(out.read_text())
    assert (found["a"], found["b"], found["without_result"]) == ("cpu float32", "cpu bfloat16", 0)
    assert len({row["title"] for row in found["rows"]}) == len(found["rows"]) > 1
    for wrong, told in (
        (("--dtypes", "float32"), "--dtypes must be two dtypes, A,B, got 'float32'"),
        (("--dtypes", "float32,float32"), "--dtypes must be two dtypes"),
        (("--dtypes", "float32,int8"), "dtype must be"),
        (("--dtypes", "float32,float64", "--backends", "cpu"), "got torch.float64"),
        (("--dtypes", "float32,float16", "--backends", "cpu,dense"), "--backends must be one name"),
        (("--dtypes", "float32,float16", "--dtype", "float16"), "--dtype has no place beside"),
        (("--dtypes", "float32,float16", "--baseline", "HEAD"), "--baseline has no place beside"),
    ):
        refused = pft_bench_command(*arguments, *wrong)
        assert refused.code == 2, refused
        assert told in refused.err


def test_profile_tells_what_each_stage_has_of_the_peak(pft_bench_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = pft_bench_command(
        "profile",
        "--preset",
        "tiny_x2",
        "--lr",
        "8x8",
        "--sched",
        "16,3",
        "--dtype",
        "bfloat16",
        "--out",
        out,
    )
    assert ended.code == 0, ended
    assert "GFLOP/s in bfloat16" in ended.out
    rows = {row["stage"]: row for row in csv.DictReader((out / "stages.csv").open())}
    for name in ("projection", "attention", "ffn", "conv", "lepe"):
        assert int(rows[name]["flops"]) > 0
        assert float(rows[name]["share_of_peak"]) >= 0
        assert name in ended.out
    assert rows["norm"]["flops"] == "0"
    assert rows["norm"]["share_of_peak"] == ""
    (peak,) = [row for name, row in rows.items() if name.startswith("peak")]
    assert int(peak["flops"]) > 0


def test_stages_share_out_all_flops() -> None:
    from pft_bench.common.stages import stage

    x, y = torch.ones(4, 8), torch.ones(8, 2)

    def work() -> None:
        with stage("ffn"):
            x @ y
            with stage("conv"):
                x @ y
                x @ y
            x @ y
        x @ y

    one = 2 * 4 * 8 * 2
    assert {k: v for k, v in shares.stage_flops(work).items() if v} == {
        "ffn": 2 * one,
        "conv": 2 * one,
        "other": one,
    }
    found = {share.name: share for share in shares.stage_shares(work, "cpu")}
    assert found["conv"].of_peak(2 * one / found["conv"].seconds) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        (
            {"bfloat16": 1.98, "float16": 0.4},
            "bfloat16 1.98x, float16 0.40x (instructions: avx512_bf16); faster: bfloat16",
        ),
        ({"bfloat16": 0.55, "float16": 1.0}, "none is faster here: they save memory, not time"),
    ],
)
def test_doctor_tells_what_sixteen_bits_gain(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch, gains: dict[str, float], told: str
) -> None:
    monkeypatch.setattr(doctor, "sixteen_bit_gains", lambda: gains)
    assert told in doctor._sixteen_bits(["avx2", "avx512_bf16"])
    assert "products in 16 bits, measured now, float32 being 1" in pft_bench_command("doctor").out


def test_gains_are_ratios_of_this_machine() -> None:
    gains = roof.sixteen_bit_gains()
    assert set(gains) == {"bfloat16", "float16"}
    assert all(0 < gain < 100 for gain in gains.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_baseline_that_16_bits_slow_down_is_told(
    tiny_run: Command, pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    told = "PyTorch multiplies more slowly in bfloat16 than in float32 on this processor"
    monkeypatch.setattr(roof, "measure_roof", lambda *_: roof.Roof(1e13, 1e13, dtype="float32"))
    ended = tiny_run("--level", "op", "--sched", "5", "--dtype", dtype, "--out", tmp_path / "out")
    assert ended.code == 0, ended
    assert pft_bench_command("report", tmp_path / "out").code == 0
    written = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert [told in text for text in (ended.out, *written)] == [dtype == "bfloat16"] * 3
    assert pft_bench_command("verify", tmp_path / "out").code == 0
