"""`pft-bench train`: what it says when it stops, and weights that bring their schedule to the other commands."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pft_bench
from pft_bench.apps.train import trainer as training
from pft_bench.cli.loading import load_model
from pft_bench.harness.cases import settings as cases_settings
from pft_bench.harness.record import lock_folder
from pft_bench.model import PRESETS

Command = Callable[..., Any]
TRAINED = (16, 16, 3, 3)
"""Not the schedule of the preset."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path / "a.png")
    return path


@pytest.fixture
def train(pft_bench_command: Command, photographs: Path, tmp_path: Path) -> Command:
    """Train the tiny model in `out` for two steps; more options may follow."""

    def call(*arguments: object) -> Any:
        return pft_bench_command(
            *("train", "--data", photographs, "--out", tmp_path / "out", "--preset", "tiny_x2"),
            *("--iterations", 2, "--batch", 1, "--patch", 8, "--save-every", 1, "--threads", 1),
            *arguments,
        )

    return call


@pytest.fixture
def trained(train: Command, copy_of_kept: Callable[..., Path]) -> Path:
    """A finished run with another schedule than the preset's; each test has a copy of its own."""
    return copy_of_kept(lambda out: train("--sched", "16,3", "--out", out))


def one_line(ended: Any, *told: str) -> None:
    """The command ended with one line of error that has all of `told` in it."""
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    text = " ".join(ended.err.split())
    for part in told:
        assert part in text, (part, text)


def test_a_finished_run_is_resumed_to_its_weights(train: Command, trained: Path) -> None:
    weights = (trained / "weights.safetensors").read_bytes()
    (trained / "weights.safetensors").unlink()
    ended = train("--sched", "16,3", "--resume")
    assert ended.code == 0, ended
    assert "no step was left to do; the moving average is in" in " ".join(ended.out.split())
    assert (trained / "weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x80\x02", b"\x80\x01", 1)),
        lambda path: torch.save({"format": 1}, path),
    ],
)
def test_a_damaged_checkpoint(train: Command, trained: Path, spoil: Callable[[Path], object]) -> None:
    spoil(trained / "checkpoint.pt")
    one_line(train("--sched", "16,3", "--resume"), str(trained / "checkpoint.pt"))


def test_what_training_started_from_may_be_gone(train: Command, trained: Path, tmp_path: Path) -> None:
    """The checkpoint has it all; the name alone is compared."""
    shutil.copy(trained / "weights.safetensors", tmp_path / "start.safetensors")
    given = ("--out", tmp_path / "next", "--init", tmp_path / "start.safetensors")
    assert train(*given).code == 0
    (tmp_path / "start.safetensors").unlink()
    (tmp_path / "next" / "weights.safetensors").unlink()
    ended = train(*given, "--resume")
    assert ended.code == 0, ended
    assert (tmp_path / "next" / "weights.safetensors").exists()
    one_line(train("--out", tmp_path / "next", "--resume"), "init stored 'start.safetensors', now None")


def test_a_damaged_or_deleted_curve(train: Command, trained: Path) -> None:
    curve = trained / "loss.jsonl"
    with curve.open("a") as file:
        file.write("hello\n")
    one_line(train("--sched", "16,3", "--resume"), f"line 3 of {curve} must be", "got 'hello'", "delete it")
    curve.unlink()
    ended = train("--sched", "16,3", "--resume")
    assert ended.code == 0
    assert f"{curve} is gone, and with it the losses of 2 steps from 0 to 1" in " ".join(ended.out.split())


def test_a_folder_in_use(train: Command, trained: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with lock_folder(trained):
        one_line(train("--sched", "16,3", "--resume"), f"{trained} is being written by process")
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before | {
        ".lock": (trained / ".lock").read_bytes()
    }


def test_a_run_that_diverges(train: Command, tmp_path: Path) -> None:
    one_line(
        train("--lr", "1e30"), "after step 0", f"no checkpoint has been written to {tmp_path / 'out'} yet"
    )


def test_a_full_disk(train: Command, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        ended = train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_line(ended, f"{tmp_path / 'out' / 'checkpoint.pt'}: File too large", "no checkpoint has been written")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]


def test_an_interrupt(train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = training.Trainer.train_step

    def interrupted(self: training.Trainer, batch: Any) -> Any:
        if self.step == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(training.Trainer, "train_step", interrupted)
    ended = train()
    assert ended.code == 130
    told = f"interrupted: stopped after 1 steps; {tmp_path / 'out' / 'checkpoint.pt'} holds the run after 1 steps"
    assert told in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seed", 2**64), "seed must be at least 0 and below 2^63"),
        (("--lr", "nan"), "learning_rate must be a positive number"),
        (("--precision", "float8"), "precision must be one of"),
        (("--resume",), "there is nothing to resume"),
    ],
)
def test_what_cannot_be_trained(train: Command, arguments: tuple[object, ...], told: str) -> None:
    one_line(train(*arguments), told)


def test_out_that_is_a_file(train: Command, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert train().code == 2
    assert (tmp_path / "out").read_text() == "mine"


# -- the schedule that weights were trained with -----------------------------------------------------------------------


def test_load_makes_the_model_that_was_trained(trained: Path) -> None:
    path = trained / "weights.safetensors"
    model = pft_bench.load(path)
    assert model.num_topk == TRAINED
    assert model.config == PRESETS["tiny_x2"].with_topk(TRAINED)
    assert pft_bench.load(path, num_topk=(16, 16, 5, 5)).num_topk == (16, 16, 5, 5)
    with safe_open(path, "pt") as file:
        assert file.metadata()["steps"] == "2"


def test_commands_take_the_schedule_from_the_weights(
    pft_bench_command: Command, tiny_run: Command, trained: Path, photographs: Path, tmp_path: Path
) -> None:
    weights = trained / "weights.safetensors"
    assert load_model(weights).num_topk == TRAINED
    assert load_model(weights, sched="16,5").num_topk == (16, 16, 5, 5)

    ended = pft_bench_command(
        *(
            "evaluate",
            "--weights",
            weights,
            "--data",
            photographs,
            "--rounds",
            0,
            "--out",
            tmp_path / "quality",
        )
    )
    assert ended.code == 0, ended
    lines = (tmp_path / "quality" / "quality.jsonl").read_text().splitlines()
    assert {json.loads(line)["schedule"] for line in lines} == {"bicubic", "16,3"}

    listed = ("--level", "model", "--backend", "cpu", "--weights", weights, "--list")
    assert "tiny_x2 16,3 " in tiny_run(*listed).out
    assert "tiny_x2 16,5 " in tiny_run(*listed, "--sched", "16,5").out
    ended = pft_bench_command(
        *("statistics", "--preset", "tiny_x2", "--lr", "8x8", "--threads", 1, "--weights", weights)
    )
    assert ended.code == 0, ended
    assert "16 -> 3" in ended.out


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("{", "must be a JSON object of num_topk"),
        ("[]", "must be a JSON object of num_topk"),
        ('{"later": 1}', "must be a JSON object of num_topk"),
        ('{"num_topk": [16, 16]}', "num_topk must have one entry for each of the 4 layers"),
        ('{"num_topk": [3, 3, 16, 16]}', "num_topk must not increase"),
        ('{"num_topk": "16"}', "must be a JSON object of num_topk"),
        ('{"num_topk": 5}', "must be a JSON object of num_topk"),
        ('{"num_topk": [16, 16, 5, "5"]}', "every entry of num_topk must be an integer, got '5'"),
        ('{"num_heads": 5}', "num_heads"),
    ],
)
def test_a_note_that_cannot_be_right(
    pft_bench_command: Command, tiny_run: Command, trained: Path, photographs: Path, note: str, told: str
) -> None:
    path = trained / "weights.safetensors"
    save_file(load_file(path), path, metadata={"pft": note})
    picture = photographs / "a.png"
    one_line(pft_bench_command("upscale", picture, trained / "o.png", "--weights", path), told)
    ended = tiny_run("--level", "model", "--weights", path, "--list")
    assert "Traceback" not in ended.err


def test_weights_of_others_have_the_schedule_of_their_preset(trained: Path) -> None:
    path = trained / "weights.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    assert pft_bench.load(path, num_topk=(16, 16, 5, 5), num_heads=3).num_topk == (16, 16, 5, 5)
    shutil.copy(path, trained / "copy.pth")
    assert pft_bench.load("small_x2").num_topk == (256, 256, 64, 64, 16, 16)
    assert cases_settings._trained_schedule(path, PRESETS["tiny_x2"]) is None
