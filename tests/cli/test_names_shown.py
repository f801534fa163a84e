"""Names of all kinds through the commands: they are shown as they are, and nothing that was measured is lost."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pft_bench
from pft_bench.apps.quality import read_rows
from pft_bench.model import PRESETS, generated_weights

Command = Callable[..., Any]

NAMES = [
    "a[draft].png",
    "b[nosuchstyle].png",
    ":smile:.png",
    "d\x1b[31m.png",
    "e\nf.png",
    "g\u202egpj.png",
    "é猫.png",
    os.fsdecode(b"caf\xe9.png"),
]
SHOWN = [
    "a[draft].png",
    "b[nosuchstyle].png",
    ":smile:.png",
    "d\\x1b[31m.png",
    "e\\nf.png",
    "g\\u202egpj.png",
    "é猫.png",
    "caf\\xe9.png",
]


@pytest.fixture
def weights(tmp_path: Path, pft_bench_command: Command) -> Path:
    path = tmp_path / os.fsdecode(b"w$\xe9$[b].pth")
    with path.open("wb") as file:
        torch.save({"params": generated_weights(pft_bench.PFT.from_config(PRESETS["tiny_x2"]))}, file)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in[x]"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    for name in NAMES:
        with (folder / name).open("wb") as file:
            Image.fromarray(pixels).save(file, "png")
    return folder


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give standard output another encoding, for the commands that follow."""

    def call(encoding: str) -> None:
        stream = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)

    return call


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_upscale(
    pft_bench_command: Command,
    speak: Callable[[str], None],
    weights: Path,
    pictures: Path,
    tmp_path: Path,
    encoding: str,
) -> None:
    speak(encoding)
    out = tmp_path / "out"
    ended = pft_bench_command("upscale", pictures, out, "--weights", weights)
    assert (ended.code, ended.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    for name in SHOWN:
        name = name.encode(encoding, "backslashreplace").decode(encoding)
        assert f"{pictures}/{name} -> {out}/{name}, 48x48" in ended.out
    assert len(ended.out.splitlines()) == len(NAMES) + 1


def test_evaluate(
    pft_bench_command: Command, speak: Callable[[str], None], weights: Path, pictures: Path, tmp_path: Path
) -> None:
    speak("ascii")
    out = tmp_path / "out"
    timing = ("--rounds", 6, "--budget", 0.1, "--lr", "8x8", "--threads", 1, "--images", "--no-isolate")
    (pictures / "broken[b].png").write_text("no picture")
    ended = pft_bench_command("evaluate", "--weights", weights, "--data", pictures, "--out", out, *timing)
    assert ended.code == 1, ended
    for name in SHOWN:
        assert name.removesuffix(".png").encode("ascii", "backslashreplace").decode() in ended.out
    assert "no result: in[x] broken[b], bicubic: " in ended.out
    assert "\x1b" not in ended.out
    assert {f"{row.image}.png" for row in read_rows(out / "quality.jsonl")} == {*NAMES, "broken[b].png"}
    listed = {f"{name}.png".replace("\n", "\\n") for name in pd.read_csv(out / "quality.csv")["image"]}
    assert listed == {*SHOWN, "broken[b].png"}
    assert (out / "quality_vs_latency.png").stat().st_size > 10_000


def test_run_and_its_report(
    tiny_run: Callable[..., Any], pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / os.fsdecode(b"run[\xe9]")
    given = ("--weights", weights, "--image", pictures / NAMES[-1], "--level", "model", "--backend", "dense")
    ended = tiny_run("--sched", "16,3", "--out", out, *given)
    assert ended.code == 0, ended
    assert f"{tmp_path}/run[\\xe9]: records.jsonl, summary.csv" in ended.out
    assert "w$\\xe9$[b].pth" in ended.out
    assert "caf\\xe9.png" in (out / "summary.csv").read_text()
    assert pft_bench_command("report", out).code == 0
    assert pft_bench_command("verify", out, "--no-recount").code == 0


def test_attention(pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path) -> None:
    for number in (0, 3, len(NAMES) - 1):
        name = NAMES[number]
        out = tmp_path / f"{number}[fig].png"
        ended = pft_bench_command("attention", pictures / name, "--weights", weights, "--out", out)
        assert (ended.code, ended.err) == (0, "")
        assert f"written: {out} (w$\\xe9$[b].pth; pixel 12,12 of {SHOWN[number]})" in ended.out


def test_train(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    data, out = tmp_path / os.fsdecode(b"d\xe9[b]"), tmp_path / os.fsdecode(b"o\xe9[b]")
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    with (data / NAMES[-1]).open("wb") as file:
        Image.fromarray(pixels).save(file, "png")
    given = ("--preset", "tiny_x2", "--iterations", 1, "--batch", 1, "--patch", 8, "--init", weights)
    ended = pft_bench_command("train", "--data", data, "--out", out, *given)
    assert (ended.code, ended.err) == (0, "")
    assert f"the moving average is in {tmp_path}/o\\xe9[b]/weights.safetensors" in ended.out
    assert (out / "weights.safetensors").is_file()


@pytest.mark.parametrize("name", ["shot[draft].png", "[/b]:smile:\x1b[31m\n.png"])
@pytest.mark.parametrize(
    "command",
    [
        ("upscale", "{}", "o.png", "--weights", "small_x2"),
        ("attention", "{}"),
        ("statistics", "{}"),
        ("report", "{}"),
        ("verify", "{}"),
        ("history", "{}"),
        ("compare", "{}", "{}"),
        ("check", "--plugin", "{}"),
        ("run", "--plugin", "{}"),
        ("run", "--image", "{}"),
        ("run", "--weights", "{}"),
        ("profile", "--weights", "{}"),
        ("evaluate", "--weights", "small_x2", "--data", "{}"),
        ("flops", "--audit", "--preset", "{}"),
        ("doctor", "{}"),
        ("{}",),
        ("run", "--{}"),
    ],
    ids=lambda command: " ".join(command),
)
def test_the_error_line_names_what_is_not_there(
    pft_bench_command: Command, command: tuple[str, ...], name: str
) -> None:
    ended = pft_bench_command(*(part.format(name) for part in command))
    assert (ended.code, ended.out) == (2, "")
    first, *others = ended.err.splitlines()
    assert first.startswith("error: ")
    assert all(line.endswith(("-h lists its options", "-h lists its commands")) for line in others)
    shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert shown in first.replace("\\\\", "\\").replace("\\x0a", "\\n")  # typer writes some out by itself
    assert "\x1b" not in ended.err


def test_doctor_names_the_extra_to_install(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found(name, *more)
    )
    assert "pip install 'pft-bench[triton]'" in pft_bench_command("doctor").out


PLUGIN = """
from pft_bench.backends import register
from pft_bench.backends.dense import DenseBackend

@register
class Mine(DenseBackend):
    name = {!r}
"""


@pytest.mark.parametrize("name", ["p><img src=x>", "[b]", "a,b", "a|b", "\x1b[31m", "", " ", "x" * 41])
def test_a_backend_of_an_odd_name_is_refused(pft_bench_command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine[b].py").write_text(PLUGIN.format(name))
    for command in ("check", "run"):
        ended = pft_bench_command(command, "--plugin", tmp_path / "mine[b].py")
        assert ended.code == 2
        assert "a backend's name must be at most 40 letters, digits" in ended.err
        assert "\x1b" not in ended.err
        assert len(ended.err.splitlines()) == 1


def gone() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_work_goes_on_when_nobody_reads(
    pft_bench_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """`... | head -1`: every picture is written, training leaves its weights, and the exit code is that of the work."""
    monkeypatch.setattr(sys, "stdout", gone())
    assert pft_bench_command("upscale", pictures, tmp_path / "out", "--weights", weights) == (0, "", "")
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES)
    monkeypatch.setattr(sys, "stdout", gone())
    given = ("--preset", "tiny_x2", "--iterations", 2, "--batch", 1, "--patch", 8, "--report-every", 1)
    assert pft_bench_command("train", "--data", pictures, "--out", tmp_path / "t", *given).code == 0
    assert (tmp_path / "t" / "weights.safetensors").is_file()
    for command in (("flops",), ("doctor",), ("--version",), ("--help",)):
        monkeypatch.setattr(sys, "stdout", gone())
        assert pft_bench_command(*command) == (0, "", "")
    monkeypatch.setattr(sys, "stdout", gone())
    (pictures / "broken.png").write_text("no picture")
    assert pft_bench_command("upscale", pictures, tmp_path / "out2", "--weights", weights).code == 1
    monkeypatch.setattr(sys, "stderr", gone())
    assert pft_bench_command("flops", "--lr", "8x8").code == 2


def test_a_full_disk_behind_standard_output_is_told(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ended = pft_bench_command("upscale", pictures, tmp_path / "out", "--weights", weights)
    assert ended.code == 2
    assert ended.err == f"error: standard output could not be written: {os.strerror(errno.ENOSPC)}\n"
    assert len(list((tmp_path / "out").iterdir())) == len(NAMES)
