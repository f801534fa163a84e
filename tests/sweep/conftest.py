"""Processes to kill: forked from one that has imported everything, so that each starts at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import jobs
import pytest

PLANTED = str(Path(__file__).parent / "planted.py")
TINY = (
    *("run", "--plugin", PLANTED, "--preset", "tiny_x2", "--lr", "8x8", "--level", "op"),
    *("--rounds", "6", "--budget", "0.1", "--threads", "1"),
)


@pytest.fixture(scope="session")
def start_program() -> Callable[..., BaseProcess]:
    """Start `pft-bench run` on the tiny model's sparse products, with more options, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pft_bench.cli"])

    def start(*arguments: object) -> BaseProcess:
        process = context.Process(target=jobs.program, args=([*TINY, *map(str, arguments)],))
        process.start()
        return process

    return start
