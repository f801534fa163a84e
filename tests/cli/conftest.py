"""The program, run inside this process on a model so small that a whole run takes seconds."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from made import measure_quickly, tiny_config

from pft_bench.backends import base
from pft_bench.cli import compare as compare_command
from pft_bench.cli import main, sweeping
from pft_bench.harness.compare import design
from pft_bench.harness.measure import roof
from pft_bench.harness.sweep import sweep
from pft_bench.model import PFT, PRESETS, generated_weights
from pft_bench.report import canvas, write

TINY = tiny_config(16, 5)
BARE = """
import torch
from pft_bench.backends import Backend, get, register

@register
class Mine(Backend):
    name, summary = "mine", "has the ops that follow"
    dtypes, devices = frozenset({torch.float32}), frozenset({"cpu"})

    def available(self):
        return None

"""
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ


class Ended(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def pft_bench_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    monkeypatch.setitem(PRESETS, "tiny_x2", TINY)
    monkeypatch.setattr(roof, "MATRIX_SIDE", 64)
    monkeypatch.setattr(roof, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(roof, "GAIN_SHAPE", (32, 32, 32))
    measure_quickly(monkeypatch)
    monkeypatch.setattr(design, "MAX_BLOCKS", 2)
    monkeypatch.setattr(canvas, "PNG_DPI", 100)  # small pictures are compressed in less time
    for command in (
        sweeping,
        compare_command,
    ):  # it looks for a third of a second, and the tests beside are no news
        monkeypatch.setattr(command, "busy_machine", lambda: None)
    if (
        IN_WORKER
    ):  # beside another test a right timer may fail its audit; tests/conftest.py has who tests that alone
        monkeypatch.setattr(sweep, "audit", lambda *_: [])
    for known in ("_BACKENDS", "_loaded"):  # what a command's plug-ins register ends with the test
        monkeypatch.setattr(base, known, dict(getattr(base, known)))
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pft-bench", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        said = capfd.readouterr()
        return Ended(int(code or 0) if not isinstance(code, str) else 1, said.out, said.err)

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], tuple[object, ...]]:
    """The options that load a plug-in of this text and choose its backend "mine"."""

    def write(text: str) -> tuple[object, ...]:
        (tmp_path / "mine.py").write_text(text)
        return "--plugin", tmp_path / "mine.py", "--backend", "mine"

    return write


@pytest.fixture
def bare_plugin(plugin: Callable[[str], tuple[object, ...]]) -> Callable[[str], tuple[object, ...]]:
    """The same for a backend that has these ops alone; each line of `ops` begins at the left."""
    return lambda ops: plugin(BARE + textwrap.indent(ops, "    "))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of a file keep what one command wrote for them all: not there before the first needs it."""
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def copy_of_kept(kept: Path, tmp_path: Path) -> Callable[[Callable[[Path], Ended]], Path]:
    """A test's own copy, at `tmp_path / "out"`; `write(folder)` is the command, run for the first test alone."""

    def copied(write: Callable[[Path], Ended]) -> Path:
        if not kept.exists():
            ended = write(kept)
            assert ended.code == 0, ended
        return Path(shutil.copytree(kept, tmp_path / "out"))

    return copied


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of the tiny model."""
    path = tmp_path / "tiny.pth"
    torch.save({"params_ema": generated_weights(PFT.from_config(TINY))}, path)
    return path


@pytest.fixture
def drawn() -> None:
    """For a test that looks at plots beside what `tiny_run` measures: they take a fifth of its time."""


@pytest.fixture
def tiny_run(
    pft_bench_command: Callable[..., Ended], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """`pft-bench run` in this process on the tiny model, 8x8 pixels, the fewest rounds, without plots; more options
    may follow.
    """
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(write, "pictures", lambda folder: [])

    def call(*arguments: object) -> Ended:
        return pft_bench_command(
            "run",
            "--no-isolate",
            "--preset",
            "tiny_x2",
            "--lr",
            "8x8",
            "--rounds",
            6,
            "--budget",
            0.001,
            "--threads",
            1,
            *arguments,
        )

    return call
