"""What every command says of files that are no pictures, of what it leaves out, and of what it converts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, no_pictures, save
from PIL import Image

from pft_bench.apps.images import read_picture
from pft_bench.apps.quality import read_rows

Command = Callable[..., Any]
PIXELS = np.random.default_rng(5).integers(0, 256, (32, 36, 3)).astype(np.uint8)
NO_PICTURES = {name: given for name, given in no_pictures().items() if not name.startswith("real")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One picture among files that are none."""
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder, "a.png", encoded(PIXELS, "PNG"))
    for name, (content, _) in NO_PICTURES.items():
        save(folder, f"{name.replace('.', '-')}{Path(name).suffix}", content)
    return folder


def lines_about(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def test_upscale_goes_on(pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path) -> None:
    ended = pft_bench_command("upscale", folder, tmp_path / "out", "--weights", weights)
    assert (ended.code, ended.err) == (1, "")
    assert f"1 written, {len(NO_PICTURES)} failed" in ended.out
    for name, (_, said) in NO_PICTURES.items():
        (line,) = lines_about(ended.out, name.replace(".", "-"))
        assert said in line
    assert len(ended.out.splitlines()) == len(NO_PICTURES) + 2


def test_evaluate_goes_on(pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = pft_bench_command("evaluate", "--weights", weights, "--data", folder, "--out", out, "--rounds", 0)
    assert (ended.code, ended.err) == (1, "")
    reasons = {row.image: row.reason for row in read_rows(out / "quality.jsonl")}
    assert reasons.pop("a") is None
    for name, (_, said) in NO_PICTURES.items():
        told = reasons.pop(name.replace(".", "-"))
        assert told is not None
        assert said in told
    assert not reasons


@pytest.mark.parametrize("name", ["empty.png", "huge.png", "cut.jpg", "svg.png", "zero.png", "huge.bmp"])
def test_the_others_say_it_in_one_line(
    pft_bench_command: Command, tmp_path: Path, name: str, weights: Path
) -> None:
    content, said = NO_PICTURES[name]
    folder = tmp_path / "in"
    folder.mkdir()
    path = save(folder, name, content)
    model = ("--preset", "tiny_x2")
    for arguments in (
        ("train", "--data", folder, "--out", tmp_path / "trained", *model, "--iterations", 1, "--patch", 4),
        ("run", "--image", path, *model, "--lr", "8x8", "--level", "model", "--sched", "dense"),
        ("statistics", path, *model, "--lr", "8x8", "--sched", "dense"),
        ("profile", "--image", path, *model, "--lr", "8x8", "--sched", "dense"),
        ("attention", path, *model, "--out", tmp_path / "b.png"),
    ):
        ended = pft_bench_command(*arguments)
        assert ended.code == 2, (arguments, ended)
        (line,) = ended.err.splitlines()
        assert said in line
        assert str(path) in line
    assert not (tmp_path / "trained").exists()


def test_what_is_converted_is_said_by_every_command(
    pft_bench_command: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pft_bench.cli.attention.write_focus_plot", lambda *_: None)  # seconds of drawing
    folder = tmp_path / "in"
    folder.mkdir()
    inked = save(folder, "a.jpg", encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"))
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 7, np.uint8)])
    faint = save(folder, "b.png", encoded(clear, "PNG"))
    said = {inked: "CMYK converted to sRGB", faint: "transparency left out"}
    model = ("--preset", "tiny_x2")
    for arguments in (
        (
            "train",
            "--data",
            folder,
            "--out",
            tmp_path / "t",
            *model,
            "--iterations",
            1,
            "--patch",
            4,
            "--batch",
            1,
        ),
        ("run", "--image", inked, *model, "--lr", "8x8", "--level", "model", "--sched", "dense", "--list"),
        ("run", "--image", faint, *model, "--lr", "8x8", "--level", "model", "--sched", "dense", "--list"),
        ("statistics", inked, *model, "--lr", "8x8", "--sched", "dense"),
        ("profile", "--image", inked, *model, "--lr", "8x8", "--sched", "dense", "--bare"),
        ("attention", inked, *model, "--out", tmp_path / "b.png"),
        ("attention", faint, *model, "--out", tmp_path / "b.png"),
        ("upscale", inked, tmp_path / "c.png", "--weights", weights),
        ("evaluate", "--data", folder, "--weights", weights, "--out", tmp_path / "e", "--rounds", 0),
    ):
        ended = pft_bench_command(*arguments)
        assert ended.code == 0, (arguments, ended)
        for path, note in said.items():
            assert (note in ended.out) == (path in arguments or folder in arguments), arguments


def test_what_upscale_leaves_out_is_said_and_a_bad_profile_does_not_fail(
    pft_bench_command: Command, weights: Path, tmp_path: Path
) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path, "a.png", encoded(PIXELS, "PNG", dpi=(300, 300)))
    padded = save(tmp_path, "p.jpg", encoded(PIXELS, "JPEG", icc_profile=profile + bytes(4)))
    ended = pft_bench_command("upscale", path, tmp_path / "b.webp", "--weights", weights)
    assert "; left out, as .webp has no place for it: density" in ended.out
    ended = pft_bench_command("upscale", padded, tmp_path / "q.png", "--weights", weights)
    assert (ended.code, f"the colour profile cut to the {len(profile)} bytes" in ended.out) == (0, True)
    assert read_picture(tmp_path / "q.png").icc == profile


def test_a_bitmap_becomes_png(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    """BMP is read by every command and written by none."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = save(folder, "a.bmp", encoded(PIXELS, "BMP"))
    for source in (folder, path):
        out = tmp_path / f"out of {source.stem}"
        ended = pft_bench_command("upscale", source, out, "--weights", weights)
        assert ended.code == 0, ended
        assert [found.name for found in out.iterdir()] == ["a.png"]
        shutil.rmtree(out)


def test_train_names_what_takes_no_part(pft_bench_command: Command, tmp_path: Path) -> None:
    save(tmp_path, "a.png", encoded(PIXELS, "PNG"))
    save(tmp_path, "b.gif", encoded(PIXELS, "GIF"))
    brief = ("--preset", "tiny_x2", "--iterations", 1, "--patch", 4, "--batch", 1)
    ended = pft_bench_command("train", "--data", tmp_path, "--out", tmp_path / "out", *brief)
    assert "left out, of formats that are not read here: 1 (b.gif)" in ended.out, ended


def test_evaluate_names_what_takes_no_part(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    for name in ("HR/a.png", "HR/a.jpg", "HR/b.png"):
        (tmp_path / "Set5" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / "Set5" / name)
    (tmp_path / "Set5" / "LR_bicubic" / "X2").mkdir(parents=True)
    for name in ("ax2.png", "zx2.png"):
        Image.fromarray(PIXELS[::2, ::2]).save(tmp_path / "Set5" / "LR_bicubic" / "X2" / name)
    arguments = ("--data", tmp_path / "Set5", "--out", tmp_path / "out", "--rounds", 0)
    ended = pft_bench_command("evaluate", "--weights", weights, *arguments)
    assert ended.code == 0, ended
    for told in (
        "Set5: left out, as another picture has the same name: 1 (a.jpg)",
        "Set5: low-resolution pictures left out, as there is no high-resolution one of their name: 1 (zx2.png)",
        "Set5: made by bicubic reduction, as there is no low-resolution picture beside the others': 1 (b.png)",
    ):
        assert told in ended.out
