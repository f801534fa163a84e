"""`pft-bench attention`: a figure for any picture, with any weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("size", "mode", "arguments", "pixel"),
    [
        ((30, 20), "RGB", (), "10,15"),
        ((1, 1), "L", ("--head", 3), "0,0"),
        ((900, 3), "RGBA", ("--query", "2,899", "--sched", "16,9"), "2,899"),
    ],
)
def test_a_figure(
    pft_bench_command: Command,
    tmp_path: Path,
    size: tuple[int, int],
    mode: str,
    arguments: tuple[object, ...],
    pixel: str,
) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    out = tmp_path / "new" / "figure.png"
    command = ("attention", tmp_path / "a.png", "--preset", "tiny_x2", "--out", out)
    ended = pft_bench_command(*command, *arguments)
    assert ended.code == 0, ended
    assert "GENERATED weights" in ended.out
    assert f"pixel {pixel} of a.png" in ended.out
    drawn = np.asarray(Image.open(out).convert("RGB"))
    assert min(drawn.shape[:2]) > 300
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


def test_a_figure_is_replaced_only_when_told(pft_bench_command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    out = tmp_path / "b.svg"
    out.write_text("precious")
    command = ("attention", tmp_path / "a.png", "--preset", "tiny_x2", "--out", out)
    ended = pft_bench_command(*command)
    assert (ended.code, out.read_text()) == (2, "precious")
    assert f"{out} exists: choose another name with --out, or add --overwrite" in ended.err
    assert pft_bench_command(*command, "--overwrite").code == 0
    assert "<svg" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--query", "4,0"), "--query must lie in the picture of 4 rows and 6 columns"),
        (("--query", "4"), "--query must be Y,X"),
        (("--query=-1,2",), "--query must be Y,X"),
        (("--head", 4), "--head must be at most 3"),
        (("--out", "a.jpg"), "--out must end in"),
        (("--preset", "huge"), "preset must be one of"),
        (("--weights", "none.pth"), "there is no such file"),
    ],
)
def test_arguments_that_cannot_be_right(
    pft_bench_command: Command, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    base = ("attention", tmp_path / "a.png", "--out", tmp_path / "b.png")
    model = () if "--weights" in arguments else ("--preset", "tiny_x2")
    ended = pft_bench_command(*base, *model, *arguments)
    assert ended.code == 2, ended
    assert said in ended.err
    assert not (tmp_path / "b.png").exists()
