"""`--threads`: one limit for every command, before any of them begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pft_bench.cli.app import whole_program
from pft_bench.common.container import usable_cores

Command = Callable[..., Any]
MAX_THREADS = 4 * usable_cores()
COMMANDS = whole_program().commands
TAKE_THREADS = [name for name, made in COMMANDS.items() if any(p.name == "threads" for p in made.params)]
NEEDED = {
    "upscale": ("a.png", "b.png", "--weights", "small_x2"),
    "evaluate": ("--weights", "small_x2", "--data", "."),
    "attention": ("a.png",),
    "train": ("--data", ".", "--out", "out"),
}


@pytest.mark.parametrize("command", TAKE_THREADS)
@pytest.mark.parametrize("threads", [MAX_THREADS + 1, 100_000, 2**70])
def test_far_too_many_threads_are_one_line(
    pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, threads: int
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    ended = pft_bench_command(command, *NEEDED.get(command, ()), "--threads", threads)
    assert ended.code == 2, ended
    assert ended.err == f"error: threads must be at most {MAX_THREADS} here, got {threads}\n"
    assert torch.get_num_threads() == before
    assert not list(tmp_path.iterdir())


def test_the_commands_that_take_threads_are_these() -> None:
    """The test above asks typer which they are; here is that it was told the truth."""
    assert {"run", "compare", "selftest", "fit", "statistics", "profile", "systems", "crossover"} | {
        *NEEDED
    } == {*TAKE_THREADS}
    for name in TAKE_THREADS:
        callback = COMMANDS[name].callback
        assert callback is not None
        assert "threads" in inspect.signature(callback).parameters
