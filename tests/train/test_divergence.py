"""Losses and weights that are not finite: the run ends, says so, and leaves what somebody can go on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import RECIPE, make_trainer

from pft_bench.apps.train import CheckpointError, Diverged, Trainer, export_weights, fit, start_from

NAN = float("nan")


def spoil_at(trainer: Trainer, step: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of `trainer` become `value` in the update of step `step`, whose own loss is still right."""
    made = trainer.optimizer.step

    def step_then_spoil(*arguments: object, **named: object) -> object:
        result = made(*arguments, **named)
        if trainer.step == step:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(value)
        return result

    monkeypatch.setattr(trainer.optimizer, "step", step_then_spoil)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (NAN, "after step 3 weight conv_first.weight is not finite"),
        (float("-inf"), "after step 3 weight conv_first.weight is not finite"),
        (1e38, "after step 3 the loss of the weights is nan"),  # finite, and nobody can go on from it
    ],
)
def test_poisoned_weights_never_replace_a_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, why: str
) -> None:
    good: dict[str, bytes] = {}
    trainer = make_trainer(folder)
    spoil_at(trainer, 3, value, monkeypatch)

    def keep() -> None:
        good.update({path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")})

    with pytest.raises(Diverged) as ended:
        fit(trainer, tmp_path, {}, save_every=1, on_checkpoint=keep)
    told = str(ended.value)
    assert told.startswith(
        f"{why}; {tmp_path / 'checkpoint.pt'} holds the run after 3 steps. --resume would compute"
    )
    assert f"--init {tmp_path / 'weights.safetensors'}" in told
    assert "\n" not in told
    for name in ("checkpoint.pt", "weights.safetensors"):
        assert (tmp_path / name).read_bytes() == good[name]
    resumed = make_trainer(folder)
    fit(resumed, tmp_path, {}, resume=True)
    assert resumed.step == RECIPE.iterations


def test_a_learning_rate_that_blows_up_says_that_there_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, replace(RECIPE, learning_rate=1e30))
    with pytest.raises(
        Diverged, match=r"^after step 0 .*; no checkpoint has been written to .* yet; begin again"
    ):
        fit(trainer, tmp_path / "often", {}, save_every=1)
    assert not (tmp_path / "often" / "checkpoint.pt").exists()
    assert not (tmp_path / "often" / "weights.safetensors").exists()
    trainer = make_trainer(folder, replace(RECIPE, learning_rate=1e30))
    with pytest.raises(
        ArithmeticError, match=r"^the loss of step 1 is (nan|inf); no checkpoint has been written"
    ):
        fit(trainer, tmp_path / "rarely", {})
    lines = (tmp_path / "rarely" / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0], "the losses before it are worth keeping"


def test_a_moving_average_or_a_moment_that_is_not_finite_counts_too(folder: Path) -> None:
    trainer = make_trainer(folder)
    batch = trainer.batch(0)
    trainer.train_step(batch)
    assert trainer.trouble(batch) is None
    moments = next(iter(trainer.optimizer.state.values()))
    moments["exp_avg_sq"].view(-1)[0] = float("inf")
    assert trainer.trouble() == "optimiser state of weight conv_first.weight is not finite"
    with torch.no_grad():
        next(trainer.ema.parameters()).view(-1)[0] = NAN
    assert trainer.trouble() == "moving average of weight conv_first.weight is not finite"


def test_looking_for_trouble_changes_nothing(folder: Path, tmp_path: Path) -> None:
    often, once = make_trainer(folder), make_trainer(folder)
    fit(often, tmp_path / "often", {}, save_every=1)
    fit(once, tmp_path / "once", {})
    assert (tmp_path / "often" / "loss.jsonl").read_bytes() == (tmp_path / "once" / "loss.jsonl").read_bytes()
    assert often.model.training


def test_starting_from_weights_that_are_not_finite_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_weights(path, make_trainer(folder).model, {})
    weights = load_file(path)
    weights["norm.weight"][0] = NAN
    save_file(weights, path)
    with pytest.raises(
        ValueError, match=r"^--init must be .* finite, but .*w\.safetensors has NaN .* norm\.weight$"
    ):
        start_from(make_trainer(folder).model, path)


def test_a_checkpoint_that_is_not_finite_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    """Earlier versions wrote such ones."""
    trainer = make_trainer(folder, replace(RECIPE, iterations=1))
    fit(trainer, tmp_path, {})
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path)
    content["state"]["model"]["norm.weight"][0] = NAN
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt cannot be resumed: weight norm\.weight is not"
    ):
        fit(make_trainer(folder, replace(RECIPE, iterations=1)), tmp_path, {}, resume=True)
