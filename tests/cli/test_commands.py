"""`pft-bench flops`, `check` and `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pft_bench
from pft_bench.backends import base, get

Command = Callable[..., Any]

# The published counts: preset -> parameters, GMAC.
PUBLISHED = {
    "classical_x2": ("19,623,527", "5029.525"),
    "classical_x3": ("19,808,167", "2250.697"),
    "classical_x4": ("19,771,239", "1265.875"),
    "light_x2": ("775,532", "278.038"),
    "light_x3": ("782,567", "123.380"),
    "light_x4": ("792,416", "69.510"),
}


def test_flops_prints_the_twelve_published_figures(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.model import PRESETS

    monkeypatch.delitem(PRESETS, "tiny_x2")
    ended = pft_bench_command("flops")
    assert ended.code == 0
    rows = {
        cells[0]: cells
        for line in ended.out.splitlines()
        if len(cells := line.replace("│", " ").split()) == 5
    }
    assert {name: (rows[name][3], rows[name][4]) for name in PUBLISHED} == PUBLISHED
    assert rows["light_x4"][1:3] == ["320x180", "1280x720"]


def test_check_passes_right_kernels(pft_bench_command: Command) -> None:
    ended = pft_bench_command("check", "--tokens", 16, "--head-dim", 13, "--seeds", 1)
    assert ended.code == 0, ended
    for row in pft_bench.backends():
        if row.available and "cpu" in get(row.name).devices:
            assert f"{row.name} float32: ok" in ended.out


def test_check_shows_every_check_on_request(pft_bench_command: Command) -> None:
    arguments = ("check", "--backend", "cpu", "--tokens", 9, "--head-dim", 3, "--seeds", 1)
    short, long = pft_bench_command(*arguments), pft_bench_command(*arguments, "--verbose")
    assert len(long.out.splitlines()) > 5 * len(short.out.splitlines())
    for name in ("sddmm grad_k operator", "attention selection", "attention grad_bias", "attention ties"):
        assert name in long.out


def test_check_finds_a_wrong_kernel(pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    right = get("cpu").spmm
    monkeypatch.setattr(get("cpu"), "spmm", lambda a, v, index: right(a, v, index) * 1.00001)
    ended = pft_bench_command("check", "--backend", "cpu", "--tokens", 16, "--head-dim", 5, "--seeds", 1)
    assert ended.code == 1
    assert "cpu float32: FAILED" in ended.out
    assert "spmm operator" in ended.out


def test_check_finds_a_kernel_without_region_masks(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get("cpu").attention_forward
    monkeypatch.setattr(
        get("cpu"),
        "attention_forward",
        lambda layer: right(replace(layer, region=None)),
    )
    ended = pft_bench_command("check", "--backend", "cpu", "--tokens", 16, "--head-dim", 5, "--seeds", 1)
    assert ended.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "numpy"), "backend must be"),
        (("--backend", "cpu", "--dtype", "float16"), "--dtype float16"),
        (("--backend", "cpu", "--dtype", "float17"), "--dtype float17"),
    ],
)
def test_check_refuses_what_it_cannot_do(
    pft_bench_command: Command, arguments: tuple[str, ...], message: str
) -> None:
    ended = pft_bench_command("check", *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_doctor_says_why_a_backend_is_missing_and_what_to_do(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(base.Backend):
        name = "broken"
        summary = ""
        dtypes = frozenset({torch.float32})
        devices = frozenset({"cpu"})

        def available(self) -> str | None:
            return "no compiler was found; install one"

    monkeypatch.setitem(base._BACKENDS, "broken", ("broken", "Broken"))
    monkeypatch.setitem(base._loaded, "broken", Broken())
    ended = pft_bench_command("doctor")
    assert ended.code == 0
    assert "no compiler was found; install one" in ended.out
    for row in pft_bench.backends():
        assert row.name in ended.out
    assert f"torch {torch.__version__}" in ended.out


def test_without_a_command_the_help_lists_all_of_them(pft_bench_command: Command) -> None:
    ended = pft_bench_command("--help")
    assert ended.code == 0
    for name in ("run", "check", "flops", "doctor"):
        assert name in ended.out


TAKE_WEIGHTS = {
    "run": ("run", "--weights"),
    "profile": ("profile", "--out", "out", "--weights"),
    "statistics": ("statistics", "--weights"),
    "upscale": ("upscale", "a.png", "b.png", "--weights"),
    "evaluate": ("evaluate", "--data", ".", "--weights"),
    "attention": ("attention", "a.png", "--weights"),
    "train": ("train", "--data", ".", "--out", "out", "--patch", 8, "--batch", 1, "--init"),
}


@pytest.mark.parametrize("command", TAKE_WEIGHTS.values(), ids=TAKE_WEIGHTS.keys())
@pytest.mark.parametrize(
    ("given", "found"),
    [("nope", "got 'nope': there is no such file"), ("a.png", "got 'a.png', which ends in .png")],
)
def test_weights_that_are_none(
    pft_bench_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[object, ...],
    given: str,
    found: str,
) -> None:
    """The option is named, what it takes and what came, in every command that takes weights."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("a.png")
    ended = pft_bench_command(*command, given)
    assert ended.code == 2
    expected = "must be a checkpoint (.pth, .pt, .safetensors) or 'small_x2'"
    assert f"{command[-1]} {expected}, {found}" in ended.err
    assert not Path("b.png").exists()
