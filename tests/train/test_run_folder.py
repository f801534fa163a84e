"""The files of a run: whole on a full disk, one run at a time, complete after a kill, and damage is named."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import files_of_at_most
from tiny_run import RECIPE, convolution_trainer

from pft_bench.apps.train import CheckpointError, CurveError, TrainingStopped, fit, read_checkpoint
from pft_bench.harness.record import FolderLocked, lock_folder

SHORT = replace(RECIPE, iterations=4)
FILES = ("checkpoint.pt", "loss.jsonl", "weights.safetensors")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps; `before` in it are its files at the checkpoint of two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")

    def keep() -> None:
        if not (out / "before").exists():
            shutil.copytree(out, out / "before", ignore=shutil.ignore_patterns("before"))

    fit(convolution_trainer(folder, SHORT), out, {}, save_every=2, report_every=1, on_checkpoint=keep)
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    return shutil.copytree(trained, tmp_path / "run")


def resume(folder: Path, run: Path) -> list[str | None]:
    """Go on; the sentences about losses that are gone."""
    said: list[str | None] = []
    fit(convolution_trainer(folder, SHORT), run, {}, resume=True, on_start=said.append)
    return said


def same(run: Path, trained: Path, *names: str) -> None:
    for name in names or FILES[1:]:
        assert (run / name).read_bytes() == (trained / name).read_bytes(), name
    one, two = (read_checkpoint(path / "checkpoint.pt", {}) for path in (run, trained))
    assert all(torch.equal(one["ema"][name], value) for name, value in two["ema"].items())


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_left", "name"), [(4096, "checkpoint.pt"), (30, "loss.jsonl")], ids=["checkpoint", "curve"]
)
def test_no_room_at_the_first_checkpoint(folder: Path, tmp_path: Path, bytes_left: int, name: str) -> None:
    with files_of_at_most(bytes_left), pytest.raises(TrainingStopped) as ended:
        fit(convolution_trainer(folder, SHORT), tmp_path, {}, save_every=2)
    assert str(ended.value) == (
        f"stopped after 2 steps: {tmp_path / name}: {os.strerror(errno.EFBIG)}; "
        f"no checkpoint has been written to {tmp_path} yet"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"loss.jsonl", ".lock"}, "a draft stays"


@pytest.mark.parametrize("failing", FILES[::2])
def test_no_room_later_keeps_what_there_was(
    folder: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Some file systems notice only when a file is forced to the disk."""
    fsync, names = os.fsync, []
    weights = (trained / "before" / "weights.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        if names.count(f".{failing}.part") == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped) as ended:
        fit(convolution_trainer(folder, SHORT), tmp_path, {}, save_every=2)
    monkeypatch.undo()
    steps = 2 if failing == "checkpoint.pt" else 4
    assert str(ended.value) == (
        f"stopped after 4 steps: {tmp_path / failing}: {os.strerror(errno.ENOSPC)}; "
        f"{tmp_path / 'checkpoint.pt'} holds the run after {steps} steps: continue with --resume"
    )
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part")), "a draft stays"
    assert read_checkpoint(tmp_path / "checkpoint.pt", {})["step"] == steps
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert resume(folder, tmp_path) == [None]
    same(tmp_path, trained)


def test_a_picture_that_vanishes_is_one_line(folder: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(folder, tmp_path / "pictures")
    trainer = convolution_trainer(pictures, SHORT)
    shutil.rmtree(pictures)
    with pytest.raises(
        TrainingStopped, match=r"^stopped after 0 steps: .*\.png.*; no checkpoint has been written"
    ):
        fit(trainer, tmp_path / "out", {})


def test_an_interrupt_says_where_to_go_on(folder: Path, tmp_path: Path, trained: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended:
        fit(convolution_trainer(folder, SHORT), tmp_path, {}, save_every=2, on_checkpoint=stop)
    told = f"stopped after 2 steps; {tmp_path / 'checkpoint.pt'} holds the run after 2 steps: continue with --resume"
    assert str(ended.value) == told
    resume(folder, tmp_path)
    same(tmp_path, trained)


# -- one run at a time -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_a_dead_process_holds_none(
    folder: Path, run: Path, trained: Path
) -> None:
    with lock_folder(run), pytest.raises(FolderLocked, match=rf"is being written by process {os.getpid()};"):
        resume(folder, run)
    (run / ".lock").write_text("1\n")  # what a killed process leaves
    resume(folder, run)
    same(run, trained)


@pytest.mark.parametrize("left", ["checkpoint.pt", "weights.safetensors"])
def test_a_new_run_overwrites_nothing(folder: Path, run: Path, left: str) -> None:
    for name in {*FILES} - {left}:
        (run / name).unlink()
    before = (run / left).read_bytes()
    with pytest.raises(ValueError, match=rf"^--out must be a new folder.* with {left}$"):
        fit(convolution_trainer(folder, SHORT), run, {})
    assert (run / left).read_bytes() == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    folder: Path, tmp_path: Path, trained: Path
) -> None:
    (tmp_path / "loss.jsonl").write_text('{"step": 0, "loss": 7.0, "rate": 1.0}\n{"st')
    fit(convolution_trainer(folder, SHORT), tmp_path, {})
    same(tmp_path, trained)


# -- after a kill ------------------------------------------------------------------------------------------------------


def test_a_finished_run_gets_its_weights_again(folder: Path, run: Path, trained: Path) -> None:
    (run / "weights.safetensors").unlink()
    resume(folder, run)
    same(run, trained)


@pytest.mark.parametrize("older", ["weights of the checkpoint before", "none"])
def test_a_kill_between_a_checkpoint_and_its_weights(
    folder: Path, run: Path, trained: Path, older: str
) -> None:
    (run / "weights.safetensors").unlink()
    if older != "none":
        shutil.copy(run / "before" / "weights.safetensors", run)
    (run / ".weights.safetensors.part").write_bytes(b"half of them")
    resume(folder, run)
    same(run, trained)
    assert not (run / ".weights.safetensors.part").exists()


def test_a_kill_between_the_curve_and_its_checkpoint(folder: Path, run: Path, trained: Path) -> None:
    for name in ("checkpoint.pt", "weights.safetensors"):
        shutil.copy(run / "before" / name, run)
    with (run / "loss.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert resume(folder, run) == [None]
    same(run, trained)


# -- damage ------------------------------------------------------------------------------------------------------------


def state_or_reason(path: Path) -> dict[str, Any] | str:
    try:
        return read_checkpoint(path, {})
    except CheckpointError as error:
        return str(error)


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(folder: Path, run: Path) -> None:
    """Either it is refused in one line or, in padding that nobody reads, the state is the same."""
    path = run / "checkpoint.pt"
    whole, state = path.read_bytes(), read_checkpoint(path, {})
    chosen = random.Random(0)
    # every part of the archive: places anywhere, and its ends, where names and tables are
    places = [chosen.randrange(len(whole)) for _ in range(100)]
    places += [chosen.randrange(2000) for _ in range(30)]
    places += [len(whole) - 1 - chosen.randrange(6000) for _ in range(60)]
    refused = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(content)
        found = state_or_reason(path)
        if isinstance(found, str):
            refused += 1
            assert str(path) in found
            assert "\n" not in found
            assert len(found) < 400
        else:
            assert found["step"] == state["step"]
            for part in ("model", "ema"):
                assert all(torch.equal(found[part][name], value) for name, value in state[part].items())
            for number, moments in state["optimizer"]["state"].items():
                assert all(torch.equal(found["optimizer"]["state"][number][n], v) for n, v in moments.items())
    assert refused > 100


@pytest.mark.parametrize("kept", [0, 1, 100, 5_000, -1, -30])
def test_a_checkpoint_cut_short(folder: Path, run: Path, kept: int) -> None:
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged or not a checkpoint"):
        resume(folder, run)


def without(*keys: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def becomes(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


MOMENT = ("state", "optimizer", "state", 0)
DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "no format": (without("format"), "is not a checkpoint of this version"),
    "no run": (without("run"), "'run' must be a dictionary, got NoneType"),
    "run a list": (becomes([], "run"), "'run' must be a dictionary, got list"),
    "no state": (without("state"), "'state' must be a dictionary, got NoneType"),
    "no step": (without("state", "step"), "['step'] is missing"),
    "step a text": (becomes("four", "state", "step"), "['step'] must be of type int, got str"),
    "step true": (becomes(True, "state", "step"), "['step'] must be of type int, got bool"),
    "step behind the end": (becomes(5, "state", "step"), "['step'] must be in 0..4, got 5"),
    "step negative": (becomes(-1, "state", "step"), "['step'] must be in 0..4, got -1"),
    "no model": (without("state", "model"), "['model'] is missing"),
    "no weight": (without("state", "model", "conv.bias"), "['model']['conv.bias'] is missing"),
    "a weight too many": (
        becomes(torch.ones(1), "state", "ema", "extra"),
        "['ema']['extra'] is not part of it",
    ),
    "a weight of another shape": (
        becomes(torch.ones(3), "state", "ema", "conv.bias"),
        "['ema']['conv.bias'] must be float32 [12], got float32 [3]",
    ),
    "a weight of another dtype": (
        becomes(torch.ones(12, dtype=torch.float64), "state", "model", "conv.bias"),
        "['model']['conv.bias'] must be float32 [12], got float64 [12]",
    ),
    "a weight that is a number": (
        becomes(3, "state", "model", "conv.bias"),
        "['model']['conv.bias'] must be float32 [12], got int",
    ),
    "a weight without values": (
        becomes(torch.empty(12, device="meta"), "state", "model", "conv.bias"),
        "['model']['conv.bias'] must be float32 [12], got meta float32 [12]",
    ),
    "a sparse weight": (
        becomes(torch.ones(12).to_sparse(), "state", "ema", "conv.bias"),
        "['ema']['conv.bias'] must be float32 [12], got sparse_coo float32 [12]",
    ),
    "no optimizer": (without("state", "optimizer"), "['optimizer'] is missing"),
    "optimizer a text": (
        becomes("adam", "state", "optimizer"),
        "['optimizer'] must be a dictionary, got str",
    ),
    "no moments": (without("state", "optimizer", "state"), "['optimizer']['state'] is missing"),
    "no moments of one weight": (
        without(*MOMENT),
        "['optimizer']['state'] must have all weights after 4 steps, lacks 1 of 2",
    ),
    "moments of no weight": (
        becomes({}, "state", "optimizer", "state"),
        "['optimizer']['state'] must have all weights after 4 steps, lacks 2 of 2",
    ),
    "no moment": (without(*MOMENT, "exp_avg"), "['exp_avg'] is missing"),
    "a moment of another shape": (
        becomes(torch.ones(2), *MOMENT, "exp_avg_sq"),
        "['exp_avg_sq'] must be float32 [12, 3, 3, 3], got float32 [2]",
    ),
    "moments of a weight that there is not": (
        becomes({}, "state", "optimizer", "state", 999),
        "['optimizer']['state'][999] is not part of it",
    ),
    "no scaler": (without("state", "scaler"), "['scaler'] is missing"),
}


@pytest.mark.parametrize(("change", "told"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_checkpoint_with_a_part_missing_or_wrong(
    folder: Path, run: Path, change: Callable[[Any], None], told: str
) -> None:
    path = run / "checkpoint.pt"
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    before = (run / "weights.safetensors").read_bytes()
    with pytest.raises(CheckpointError) as refused:
        resume(folder, run)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (run / "weights.safetensors").read_bytes() == before


def test_settings_of_the_optimizer_are_the_recipes(folder: Path, run: Path, trained: Path) -> None:
    """Other versions of torch keep other settings in a checkpoint, and nothing is taken from there."""
    shutil.copytree(run / "before", run, dirs_exist_ok=True)
    path = run / "checkpoint.pt"
    content = torch.load(path)
    content["state"]["optimizer"]["param_groups"] = [{"lr": 1e9}]
    torch.save(content, path)
    resume(folder, run)
    same(run, trained)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [*lines, b"hello\n"], "line 5 of .*, got 'hello'; "),
        (lambda lines: [*lines, b"hello"], "line 5 of .*, got 'hello'; "),
        (lambda lines: [*lines[:1], b"\n", *lines[1:]], "line 2 of .*, got ''; "),
        (lambda lines: [lines[0], b'{"step": 1, "loss": 0.5}\n', *lines[2:]], "line 2 of .*, got '{"),
        (lambda lines: [lines[0][:-1], *lines[1:]], "line 1 of .*, got '{"),  # two in one
        (lambda lines: [*lines, *lines], "line 5 of .*, got '{"),  # two runs at once, as they once could be
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 2 of .*, got '{"),
        (lambda lines: [lines[0].replace(b"s", b"\xf3"), *lines[1:]], "line 1 of .*, got '{"),
        (lambda lines: [b"[" * 100_000 + b"\n"], "line 1 of .*, got '"),
        (
            lambda lines: [lines[0].replace(b"0.", b"1."), *lines[1:]],
            "was changed after it was written: its losses",
        ),
    ],
)
def test_a_damaged_curve_is_one_line(
    folder: Path, run: Path, change: Callable[[list[bytes]], list[bytes]], told: str
) -> None:
    path = run / "loss.jsonl"
    changed = b"".join(change(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(changed)
    with pytest.raises(CurveError, match=told) as refused:
        resume(folder, run)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert path.read_bytes() == changed, "what cannot be read is not thrown away"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (None, "loss.jsonl is gone, and with it the losses of 2 steps from 0 to 1;"),
        (b"", "loss.jsonl lacks the losses of 2 steps from 0 to 1;"),
        (slice(0, 1), "loss.jsonl lacks the losses of step 1;"),
        (slice(1, 2), "loss.jsonl lacks the losses of step 0;"),
    ],
)
def test_losses_that_are_gone_are_told_once(
    folder: Path, run: Path, trained: Path, lines: slice | bytes | None, told: str
) -> None:
    shutil.copytree(run / "before", run, dirs_exist_ok=True)
    path = run / "loss.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    kept = whole[lines] if isinstance(lines, slice) else []
    path.write_bytes(b"".join(kept))
    if lines is None:
        path.unlink()
    (said,) = resume(folder, run)
    assert said is not None
    assert told in said
    assert said.endswith("the file goes on at step 2")
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [*(json.loads(line)["step"] for line in kept), 2, 3]
    same(run, trained, "weights.safetensors")
    assert resume(folder, run) == [None]


def test_what_a_power_cut_leaves_behind_the_last_line_is_dropped(
    folder: Path, run: Path, trained: Path
) -> None:
    with (run / "loss.jsonl").open("ab") as file:
        file.write(bytes(100))
    assert resume(folder, run) == [None]
    same(run, trained)


def test_a_checkpoint_of_an_earlier_version_knows_nothing_of_the_curve(
    folder: Path, run: Path, trained: Path
) -> None:
    shutil.copytree(run / "before", run, dirs_exist_ok=True)
    content = torch.load(run / "checkpoint.pt")
    del content["state"]["curve"]
    torch.save(content, run / "checkpoint.pt")
    assert resume(folder, run) == [None]
    same(run, trained)
