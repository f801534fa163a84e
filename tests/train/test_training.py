"""The same seed gives the same losses: alone or with others, in one go or killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_run import RECIPE, convolution_trainer, make_trainer

from pft_bench.apps.train import (
    CheckpointError,
    Processes,
    Recipe,
    Trainer,
    export_weights,
    fit,
    read_checkpoint,
)
from pft_bench.apps.train.trainer import _seed
from pft_bench.harness.record import lock_folder
from pft_bench.model import load, settings_note

SCRIPT = Path(__file__).parent / "tiny_run.py"


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="session")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("uninterrupted")
    fit(make_trainer(folder), out, {}, save_every=2)
    torch.set_num_threads(threads)
    return out


def test_the_loss_falls_and_the_model_learns(uninterrupted: Path, folder: Path) -> None:
    losses = curve(uninterrupted)
    assert len(losses) == RECIPE.iterations
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("backend", ["dense", "cpu"])
def test_the_same_seed_gives_the_same_bits(folder: Path, tmp_path: Path, backend: str) -> None:
    recipe = replace(RECIPE, iterations=3)
    for name in ("one", "two"):
        fit(make_trainer(folder, recipe, backend=backend), tmp_path / name, {})
    other = make_trainer(folder, replace(recipe, seed=4), backend=backend)
    fit(other, tmp_path / "other", {})
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert curve(tmp_path / "one") != curve(tmp_path / "other")


def test_two_processes_are_one_with_the_same_global_batch(
    folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Under torchrun with gloo: the loss curve, and the weights at its end. A folder in use is refused by both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    with lock_folder(tmp_path / "held") as held:
        done = subprocess.run(
            [*command, SCRIPT, folder, tmp_path, "--refused-by", held],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"rank 0: FolderLocked: {held} is being written by process {os.getpid()}" in done.stdout
    assert "rank 1: FirstStopped" in done.stdout
    assert not (held / "checkpoint.pt").exists()
    assert curve(tmp_path) == pytest.approx(curve(uninterrupted), rel=1e-5)
    one, two = (read_checkpoint(path / "checkpoint.pt", {}) for path in (uninterrupted, tmp_path))
    for part in ("model", "ema"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-3, atol=1e-4, msg=f"{part} {name}")


def test_killed_while_saving_then_resumed_the_curve_is_bit_for_bit_the_same(
    folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Killed by the kernel in the middle of the second checkpoint's file: the first one must still be there."""
    killed = subprocess.run([sys.executable, SCRIPT, folder, tmp_path, "--die-after", "2"], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert (tmp_path / ".checkpoint.pt.part").stat().st_size == 4096
    assert len((tmp_path / "loss.jsonl").read_text().splitlines()) == 4, "not killed where it should be"
    resumed = make_trainer(folder)
    fit(resumed, tmp_path, {}, resume=True, save_every=2)
    assert curve(tmp_path) == curve(uninterrupted)
    before, after = (read_checkpoint(path / "checkpoint.pt", {}) for path in (uninterrupted, tmp_path))
    for part in ("model", "ema"):
        assert all(torch.equal(after[part][name], value) for name, value in before[part].items())


def test_random_numbers_of_the_model_resume_too(folder: Path, tmp_path: Path) -> None:
    def made() -> Trainer:
        return convolution_trainer(folder, replace(RECIPE, iterations=4), dropout=0.5)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    fit(made(), tmp_path / "whole", {})
    with pytest.raises(KeyboardInterrupt):
        fit(made(), tmp_path / "parts", {}, save_every=2, report_every=1, on_checkpoint=lambda: stop(None))
    torch.rand(7)  # whatever the interruption did to the generator
    fit(made(), tmp_path / "parts", {}, resume=True)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_moving_average_is_that_of_the_weights(folder: Path) -> None:
    trainer = make_trainer(folder)
    wanted = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for step in range(3):
        trainer.train_step(trainer.batch(step))
        for name, value in trainer.model.named_parameters():
            wanted[name] = 0.9 * wanted[name] + 0.1 * value.detach()
    for name, value in trainer.ema.named_parameters():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)


def test_mixed_precision_trains_close_to_float32(folder: Path) -> None:
    """float32 weights, bfloat16 products: not the same losses, and not far from them."""
    full, mixed = (make_trainer(folder, replace(RECIPE, precision=p)) for p in ("float32", "bfloat16"))
    losses = [[float(t.train_step(t.batch(step))) for step in range(3)] for t in (full, mixed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {value.dtype for value in mixed.model.parameters()} == {torch.float32}


def test_a_checkpoint_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, replace(RECIPE, iterations=1))
    run = {"model": "small", "seed": 1, "recipe": {"batch": 2, "rate": 1e-3, "steps": [3]}}
    fit(trainer, tmp_path, run)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(
            tmp_path / "checkpoint.pt", run | {"recipe": {"batch": 4, "rate": 1e-3, "steps": [5]}}
        )
    told = "is of another run: batch stored 2, now 4; steps stored [3], now [5]"
    assert str(refused.value).endswith(told)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        fit(trainer, tmp_path / "elsewhere", {}, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK half a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint of pft-bench train"):
        read_checkpoint(tmp_path / "checkpoint.pt", {})


def test_exported_weights_are_loaded_without_the_index(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder)
    notes = {"model": "small", "steps": "0", "seed": "1", "made for": "Prüfung"}
    export_weights(tmp_path / "w.safetensors", trainer.ema, notes)
    model = load(tmp_path / "w.safetensors", "dense")
    assert model.config == trainer.ema.config
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model(x), trainer.ema(x))
    weights = sum(value.numel() * 4 for value in trainer.ema.parameters())
    assert weights < (tmp_path / "w.safetensors").stat().st_size < weights + 12_000
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == notes | settings_note(trainer.model.config)
    first = (tmp_path / "w.safetensors").read_bytes()
    for _ in range(8):  # the library's own order of the notes changes from call to call
        export_weights(tmp_path / "w.safetensors", trainer.ema, notes)
        assert (tmp_path / "w.safetensors").read_bytes() == first
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


class OldInteger(int):
    """A uint64 of numpy before version 2, as far as shifts by Python's integers go."""

    def __rshift__(self, other: int) -> int:
        raise TypeError("ufunc 'right_shift' not supported for the input types")


class OldSequence(np.random.SeedSequence):
    def generate_state(self, *arguments: Any) -> Any:
        return [OldInteger(value) for value in super().generate_state(*arguments)]


def test_a_step_has_the_same_seed_with_every_version_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 1.26 is among those that the package declares; with .ci/oldest.txt all tests of training run on it."""
    expected = [6233904063939786893, 5712964121383671236, 5737856171534892084]
    assert [_seed(3, step, 0) for step in range(3)] == expected
    monkeypatch.setattr("pft_bench.apps.train.trainer.np.random.SeedSequence", OldSequence)
    assert [_seed(3, step, 0) for step in range(3)] == expected


def test_published_recipe() -> None:
    """FACTS of the authors' training options: warm-up, milestones, learning rates."""
    recipe = Recipe.published(light=False)
    assert (recipe.learning_rate, recipe.batch, recipe.patch, recipe.warmup) == (2e-4, 32, 64, 20_000)
    assert recipe.milestones == (250_000, 400_000, 450_000, 475_000, 490_000)
    rates = [recipe.rate(step) for step in (0, 9_999, 19_999, 249_999, 250_000, 400_000, 499_999)]
    assert rates == pytest.approx([1e-8, 1e-4, 2e-4, 2e-4, 1e-4, 5e-5, 2e-4 / 32])
    assert Recipe.published(light=True).learning_rate == 5e-4
    short = Recipe.published(light=True, iterations=100)
    assert (short.warmup, short.milestones) == (4, (50, 80, 90, 95, 98))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"milestones": (4, 2)}, "milestones must rise"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
    ],
)
def test_recipe_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes, got 4"):
        Processes(rank=0, size=3).share(4)
    assert [list(Processes(rank=rank, size=2).share(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]
