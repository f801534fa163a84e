"""Processes to kill: forked from one that has imported everything, so that each starts at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import jobs
import pytest

from pft_bench.harness.sweep import Workers, isolation


@pytest.fixture(scope="session")
def start_program() -> Callable[..., BaseProcess]:
    """Start `pft-bench run` on the tiny model's sparse products, with more options, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pft_bench.cli", "torch._dynamo"])

    def start(*arguments: object) -> BaseProcess:
        process = context.Process(target=jobs.program, args=([*jobs.TINY, *map(str, arguments)],))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Workers that wait for three seconds; they start in seconds, so all tests share them."""
    with pytest.MonkeyPatch.context() as patch, Workers(timeout_s=3.0) as made:
        patch.setattr(isolation, "SERVER", jobs.QUICK_SERVER)
        yield made
