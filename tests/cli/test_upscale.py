"""`pft-bench upscale`: files and folders, what fails and what goes on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pft_bench
from pft_bench.apps.images import Picture, read_picture, write_picture
from pft_bench.model import compare_tiled
from pft_bench.model import upscale as model_upscale

Command = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several kinds, two of them broken."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    write_picture(folder / "deep.png", Picture(deep, deep[..., 0]))
    write_picture(folder / "sub" / "grün [bold] 猫.tif", Picture(deep[:1, :1, :1] // 257))
    write_picture(folder / "photo.JPG", Picture(deep.astype(np.uint8)))
    (folder / "cut.png").write_bytes((folder / "deep.png").read_bytes()[:100])
    (folder / "text.webp").write_text("no picture")
    (folder / "notes.txt").write_text("not meant")
    (folder / "._deep.png").write_text("what some systems leave")
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_broken_files(
    pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = pft_bench_command("upscale", folder, out, "--weights", weights)
    assert ended.code == 1
    assert names(out) == {"deep.png", "sub/grün [bold] 猫.tif", "photo.JPG"}
    assert "3 written, 2 failed" in ended.out
    assert f"failed {folder / 'cut.png'} must be a picture" in ended.out
    assert f"failed {folder / 'text.webp'} must be a picture" in ended.out
    deep = read_picture(out / "deep.png")
    assert (deep.pixels.dtype, deep.size_hw, deep.alpha is not None) == (np.uint16, (12, 18), True)
    assert len(np.unique(deep.pixels % 257)) > 100  # really 16 bits
    assert read_picture(out / "sub" / "grün [bold] 猫.tif").pixels.shape == (2, 2, 1)


def test_the_pixels_are_those_of_the_model(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    write_picture(tmp_path / "a.png", Picture(pixels))
    arguments = ("--weights", weights, "--backend", "reference", "--sched", "16,3")
    assert pft_bench_command("upscale", tmp_path / "a.png", tmp_path / "b.png", *arguments).code == 0
    model = pft_bench.load(weights, "reference", num_topk=(16, 16, 3, 3))
    with torch.no_grad():
        y = model(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0))[0]
    expected = (y.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    found = read_picture(tmp_path / "b.png").pixels
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 0.01


def test_tiles(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    """The options reach the model: the pixels are those of its own tiling, and differ from the whole image's."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    write_picture(tmp_path / "a.png", Picture(pixels))
    run = ("upscale", tmp_path / "a.png")
    tiled = pft_bench_command(*run, tmp_path / "tiled.png", "--weights", weights, "--tile", "16:4", "--seams")
    assert tiled.code == 0, tiled
    found = read_picture(tmp_path / "tiled.png").pixels
    x = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    model = pft_bench.load(weights)
    tiles, whole = model_upscale(model, x, tile=16, overlap=4), model_upscale(model, x)
    first, second = ((y[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy() for y in (tiles, whole))
    assert found.shape == (60, 82, 3)
    assert np.abs(found - first).max() <= 1
    assert np.abs(found - second).max() > 1
    seams = compare_tiled(model, x, 16, 4)
    said = f"largest difference {seams.max_abs * 255:.2g} of 255 levels, PSNR {seams.psnr_db:.1f} dB"
    assert f"tiles against the whole: {said}" in tiled.out
    refused = pft_bench_command(*run, tmp_path / "c.png", "--weights", weights, "--seams")
    assert (refused.code, "--seams compares tiles" in refused.err) == (2, True)
    little = pft_bench_command(*run, tmp_path / "b.png", "--weights", weights, "--memory", "1kB")
    assert little.code == 1
    assert re.search(r"memory must be at least \d+(\.\d+)? kB beside .* got 1 kB", little.out), little.out


def test_nothing_is_overwritten_unless_told(
    pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "deep.png").write_text("precious")
    ended = pft_bench_command("upscale", folder, out, "--weights", weights)
    assert (out / "deep.png").read_text() == "precious"
    assert "1 left as they are" in ended.out
    single = ("upscale", folder / "deep.png", out / "deep.png", "--weights", weights)
    ended = pft_bench_command(*single)
    assert (ended.code, (out / "deep.png").read_text()) == (2, "precious")
    assert "exists: choose another name, or add --overwrite" in ended.err
    assert pft_bench_command(*single, "--overwrite").code == 0
    assert read_picture(out / "deep.png").size_hw == (12, 18)


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_picture_is_never_replaced_by_its_own_enlargement(
    pft_bench_command: Command, weights: Path, folder: Path, more: tuple[str, ...]
) -> None:
    before = (folder / "deep.png").read_bytes()
    for place in (folder, folder / "deep.png"):
        ended = pft_bench_command("upscale", place, place, "--weights", weights, *more)
        assert ended.code == 2
        assert f"OUT must not be IN, whose pictures are never replaced, got {place}" in ended.err
        assert "--overwrite" not in ended.err
    ended = pft_bench_command("upscale", folder, folder, "--weights", weights, "--format", "png", *more)
    assert ended.code == 1
    assert f"{folder / 'deep.png'} is one of the pictures, which are never replaced" in ended.out
    assert "1 written" not in ended.out  # photo.png and sub/grün
    assert "2 written" in ended.out
    assert "--overwrite" not in ended.out
    assert (folder / "deep.png").read_bytes() == before


def test_a_picture_is_not_replaced_by_that_of_another(
    pft_bench_command: Command, weights: Path, tmp_path: Path
) -> None:
    """`--format png` gives a.webp the name of a.png, which is still to be read."""
    for name in ("a.png", "a.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    arguments = ("--weights", weights, "--format", "png", "--overwrite")
    ended = pft_bench_command("upscale", tmp_path, tmp_path, *arguments)
    assert (ended.code, "2 failed" in ended.out) == (1, True)
    assert (tmp_path / "a.png").read_bytes() == before


def test_pictures_of_other_formats_are_named(
    pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for place in (folder / "b.GIF", folder / "sub" / "a.psd", folder / ".c.psd", out / "d.gif"):
        place.write_bytes(b"")
    ended = pft_bench_command("upscale", folder, out, "--weights", weights)
    assert "left out, of formats that are not read here: 2 (b.GIF, a.psd)" in ended.out
    ended = pft_bench_command("upscale", out, tmp_path / "new", "--weights", weights, "--overwrite")
    assert ended.code == 0, ended  # what was written before; d.gif is named
    assert "1 (d.gif)" in ended.out
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "e.gif").write_bytes(b"")
    ended = pft_bench_command("upscale", tmp_path / "only", out, "--weights", weights)
    assert (ended.code, "without any; left out" in ended.err, "1 (e.gif)" in ended.err) == (2, True, True)


def test_two_pictures_of_one_name(pft_bench_command: Command, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    arguments = ("--weights", weights, "--format", "png", "--overwrite")
    ended = pft_bench_command("upscale", tmp_path / "in", tmp_path / "out", *arguments)
    assert ended.code == 1
    assert "was just written from" in ended.out
    assert names(tmp_path / "out") == {"a.png"}


def test_output_inside_the_input_is_not_enlarged_again(
    pft_bench_command: Command, weights: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for _ in range(2):
        arguments = ("--weights", weights, "--overwrite")
        ended = pft_bench_command("upscale", tmp_path, tmp_path / "large", *arguments)
        assert (ended.code, names(tmp_path / "large")) == (0, {"a.png"})
    assert read_picture(tmp_path / "large" / "a.png").size_hw == (8, 8)


def test_a_format_that_cannot_hold_it_fails_before_the_model_runs(
    pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("the model ran")

    monkeypatch.setattr(pft_bench.PFT, "forward", never)
    ended = pft_bench_command("upscale", folder / "deep.png", tmp_path / "a.jpg", "--weights", weights)
    assert ended.code == 1
    assert "cannot hold transparency" in ended.out
    (tmp_path / "file").write_text("")
    ended = pft_bench_command(
        "upscale", folder / "deep.png", tmp_path / "file" / "a.png", "--weights", weights
    )
    assert (ended.code, f"Is a file, not a folder: {tmp_path / 'file'}" in ended.out) == (1, True)


def test_a_full_disk_stops_the_rest(
    pft_bench_command: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / f"{name}.png")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pft_bench.cli.upscale.write_picture", full)
    ended = pft_bench_command("upscale", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert ended.code == 1
    assert "No space left" in ended.out
    assert "2 not tried" in ended.out
    assert "0 written, 3 failed" in ended.out


def test_no_memory_for_one_picture_does_not_stop_the_others(
    pft_bench_command: Command, weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pft_bench.PFT.forward

    def forward(self: pft_bench.PFT, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, x)

    monkeypatch.setattr(pft_bench.PFT, "forward", forward)
    ended = pft_bench_command("upscale", folder, tmp_path / "out", "--weights", weights)
    assert ended.code == 1
    assert "1 written, 4 failed" in ended.out
    assert f"{folder / 'deep.png'}: CUDA out of memory" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.png", "out.png"), "there is no such file"),
        ((".", "out"), "without any"),
        (("a.png", "out.gif"), "OUT must end in"),
        (("a.png", "out.png", "--format", "gif"), "--format must be one of"),
        (("a.png", "out.png", "--format", "tif"), "does not agree"),
        (("a.png", "out.png", "--dtype", "int8"), "dtype must be"),
        (("a.png", "out.png", "--backend", "fast"), "backend"),
        (("a.png", "out.png", "--sched", "16,17"), "schedule"),
        (("a.png", "out.png", "--threads", 100000), "threads must be at most"),
        (("a.png", "out.png", "--tile", "ten"), "tile must be SIZE"),
        (("a.png", "out.png", "--tile", "18"), "multiple of the window size"),
        (("a.png", "out.png", "--memory", "lots"), "--memory must be a size"),
    ],
)
def test_arguments_that_cannot_be_right(
    pft_bench_command: Command,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] != ".":
        Image.new("RGB", (4, 4)).save("a.png")
    ended = pft_bench_command("upscale", *arguments, "--weights", weights)
    assert ended.code == 2
    assert said in ended.err
    assert not Path("out.png").exists()


def test_a_wrong_checkpoint_is_told_by_its_keys(
    pft_bench_command: Command, weights: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    content = torch.load(weights, weights_only=True)["params_ema"]
    content["surplus.weight"] = content.pop("norm.weight")
    torch.save(content, tmp_path / "wrong.pth")
    run = ("upscale", tmp_path / "a.png", tmp_path / "b.png", "--weights")
    ended = pft_bench_command(*run, tmp_path / "wrong.pth")
    assert ended.code == 2
    assert "lacks 1 keys: norm.weight and has unknown 1 keys: surplus.weight" in ended.err
    torch.save({"conv_first.weight": torch.zeros(60, 3, 3, 3)}, tmp_path / "other.pth")
    ended = pft_bench_command(*run, tmp_path / "other.pth")
    assert (ended.code, "not the weights of PFT" in ended.err) == (2, True)
