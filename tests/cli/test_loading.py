"""--weights on the command line: which model they are, what they do not say, and notes of what was left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import io

from pft_bench.apps.train.state import write_checkpoint
from pft_bench.model import PFT, generated_weights

# Windows of 16 tokens; so narrow that all heads share one bias, and no weight tells how many there are.
NARROW: dict[str, Any] = {
    "embed_dim": 12,
    "depths": (3, 3),
    "num_heads": 3,
    "window_size": 4,
    "convffn_kernel_size": 3,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}


def saved(path: Path, wrap: Callable[[dict[str, Any]], Any] = dict, **keywords: Any) -> Path:
    model = PFT(**(NARROW | keywords))
    torch.save(wrap(generated_weights(model)), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "in.png"
    path.parent.mkdir()
    io.imsave(path, np.arange(32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3), check_contrast=False)
    return path


LISTED = ("run", "--level", "model", "--list")


def test_run_takes_the_preset_of_the_weights(pft_bench_command) -> None:
    ended = pft_bench_command(*LISTED, "--weights", "small_x2")
    assert ended.code == 0, ended.err
    assert "small_x2 256,64,16" in ended.out  # its own schedule: 1024 does not fit its windows
    assert "light" not in ended.out
    ended = pft_bench_command(*LISTED, "--weights", "small_x2", "--preset", "small_x2", "--sched", "64,16")
    assert "small_x2 64,16" in ended.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--preset", "light"),
            "--preset must be that of --weights or be left out: small_x2.safetensors is a small_x2, got 'light'",
        ),
        (("--scale", 4), "that of --weights or be left out: small_x2.safetensors enlarges 2 times, got 4"),
        (("--sched", "1024,256"), "schedule '1024,256' must keep at most the 256 tokens of a window, got 1024"),
    ],
)  # fmt: skip
def test_options_that_contradict_the_weights(pft_bench_command, options: tuple[Any, ...], said: str) -> None:
    for command in (LISTED, ("statistics",), ("profile",)):
        ended = pft_bench_command(*command, "--weights", "small_x2", *options)
        assert ended.code == 2
        assert said in ended.err


def test_num_heads_without_weights(pft_bench_command, picture: Path) -> None:
    for command in (LISTED, ("attention", picture, "--out", picture.with_name("new.png"))):
        ended = pft_bench_command(*command, "--num-heads", 3)
        assert ended.code == 2
        assert "--num-heads is of the model in --weights, got 3 without weights" in ended.err


def test_a_model_of_no_preset(pft_bench_command, picture: Path, tmp_path: Path) -> None:
    """What its weights do not say is asked for by the options' names, and reaches the loader."""
    weights = saved(tmp_path / "net.pth")
    commands: dict[str, tuple[Any, ...]] = {
        "upscale": (picture, tmp_path / "out.png"),
        "attention": (picture, "--out", tmp_path / "figure.png"),
        "evaluate": ("--data", picture.parent, "--rounds", 0, "--out", tmp_path / "quality"),
        "run": ("--level", "model", "--list"),
    }
    for command, options in commands.items():
        ended = pft_bench_command(command, *options, "--weights", weights)
        assert ended.code == 2
        assert (
            "net.pth: num_topk and num_heads must be given, e.g. load(path, num_topk=..., num_heads=...) or --sched "
            "512,128,32 --num-heads 4 of the commands" in ended.err
        )
        ended = pft_bench_command(command, *options, "--weights", weights, "--sched", "9,4", "--num-heads", 3)
        assert ended.code == 0, ended.err
    assert io.imread(tmp_path / "out.png").shape == (64, 64, 3)
    assert (tmp_path / "figure.png").exists()
    assert "net 9,4" in ended.out  # run's: the name of the file stands for the preset


def test_heads_that_the_bias_tells(pft_bench_command, picture: Path, tmp_path: Path) -> None:
    weights = saved(tmp_path / "net.pth", embed_dim=102, num_heads=6)
    given = ("upscale", picture, tmp_path / "out.png", "--weights", weights)
    ended = pft_bench_command(*given)
    assert ended.code == 2
    assert "num_topk must be given" in ended.err
    assert "--num-heads" not in ended.err
    assert pft_bench_command(*given, "--sched", "9,4").code == 0


def test_a_model_of_no_preset_is_measured(tiny_run, tmp_path: Path) -> None:
    weights = saved(tmp_path / "net.pth")
    given = ("--weights", weights, "--num-heads", 3, "--level", "model", "--sched", "9,4")
    ended = tiny_run(*given)
    assert ended.code == 2, "another model's preset"
    assert "net.pth has the shape of no preset, got 'tiny_x2'" in ended.err


def test_notes_are_lines_of_their_own(pft_bench_command, picture: Path, tmp_path: Path) -> None:
    counters = {"total_ops": torch.zeros(1, dtype=torch.float64)}
    weights = saved(tmp_path / "[net].pth", lambda state: counters | state)
    ended = pft_bench_command(
        *("upscale", picture, tmp_path / "out.png", "--weights", weights, "--sched", "9", "--num-heads", 3)
    )
    assert ended.code == 0
    assert ended.err == f"note: {weights}: counters of other tools are left out: 1 keys: total_ops\n"


def test_a_training_state_leads_to_the_weights(pft_bench_command, picture: Path, tmp_path: Path) -> None:
    checkpoint, state = tmp_path / "checkpoint.pt", generated_weights(PFT(**NARROW))
    write_checkpoint(checkpoint, {"step": 1, "model": state, "ema": state}, {"model": "small_x2"})
    ended = pft_bench_command("upscale", picture, tmp_path / "out.png", "--weights", checkpoint)
    assert ended.code == 2
    assert "the weights to use are in weights.safetensors beside it" in ended.err
