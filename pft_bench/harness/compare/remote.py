"""A, B and A' in worker processes, so that two versions of this package can be measured in alternation.

Only one process works at a time; the others wait for their next request. Each round has interpreters of its own, and
each case is opened in a fork of them, so that a crash is an answer. Alternating processes is noisier than alternating
calls: the operating system moves them between processors. So slots are longer here, and each begins with untimed calls
that bring the side's data and clock back.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...common.messages import UserError
from ...common.processes import end, start
from ..measure import timer
from ..measure.order import CONTROL
from ..measure.results import Rejection
from .design import BLOCK_S, Sampler
from .local import NotComparable

WORKER = Path(__file__).with_name("worker.py")
SETTLE_S = 0.01
TIMEOUT_S = 600.0


class WorkerError(UserError, RuntimeError):
    """A worker could not carry out a request: it does not know the package's version, or it raised."""


@dataclass(frozen=True)
class Version:
    """A Python that has one version of this package installed, and what to call it."""

    label: str
    python: Path

    @classmethod
    def here(cls) -> Version:
        """The version that is running."""
        return cls("working tree", Path(sys.executable))


class Worker:
    """The driver's end of one worker process."""

    def __init__(self, version: Version, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.version, self.timeout_s = version, timeout_s
        self.log = folder / f"worker-{version.label.replace(' ', '-').replace('/', '-')}.log"
        # -P and another working folder: only what that Python has installed may be imported.
        with self.log.open("ab") as log:
            self._process = start(
                [version.python, "-P", WORKER, timer.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """One request and its answer; WorkerError with the worker's own words otherwise."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"{self.version.label}: its worker ended; see {self.log}") from None
        if not select.select([self._process.stdout], [], [], self.timeout_s)[0]:
            raise WorkerError(f"{self.version.label}: no answer to {do!r} within {self.timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.version.label}: its worker ended; see {self.log}")
        told = json.loads(line)
        if "error" in told:
            raise WorkerError(f"{self.version.label}: {told['error']}")
        return told["ok"]

    def stop(self) -> None:
        """End the worker and its open case. Killed: it has nothing to keep, and libraries take a second to unload."""
        end(self._process)


def _unless_rejected(side: str, told: Any) -> Any:
    """The answer, unless it says that the case cannot be timed."""
    if isinstance(told, dict) and "rejected" in told:
        status, reason = told["rejected"]
        raise NotComparable(side, Rejection(cast(Literal["failed", "error", "oom"], status), reason))
    return told


class RemoteSampler:
    """Opened cases of three workers."""

    def __init__(self, workers: Mapping[str, Worker], blocks_s: Mapping[str, float]) -> None:
        self.workers, self.blocks_s = workers, blocks_s

    def block_s(self, side: str) -> float:
        """As its worker found it when it warmed up."""
        return self.blocks_s[side]

    def sample_s(self, side: str, blocks: int) -> list[float]:
        """Timed blocks in the side's process."""
        told = self.workers[side].ask("sample", blocks=blocks, settle_s=SETTLE_S)
        return [float(value) for value in _unless_rejected(side, told)]


@contextmanager
def remote_layout(workers: Mapping[str, Worker], case_id: str, *, fresh: bool) -> Iterator[Sampler]:
    """One layout: the case, opened in every side's worker. With `fresh`, inputs change between timed calls."""
    opened: dict[str, float] = {}
    try:
        for side, worker in workers.items():
            told = worker.ask("open", case_id=case_id, block_s=BLOCK_S, fresh=fresh)
            opened[side] = 0.0
            opened[side] = float(_unless_rejected(side, told)["block_s"])
        yield RemoteSampler(workers, opened)
        for side, worker in workers.items():
            _unless_rejected(side, worker.ask("finish"))
    finally:
        for side in opened:
            workers[side].ask("close")


@contextmanager
def workers_of(a: Version, b: Version, folder: Path, order: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """One worker a side, started in the order of sides given; A' is a second worker of A."""
    versions = {"A": a, "B": b, CONTROL: a}
    started: dict[str, Worker] = {}
    try:
        for side in order:
            started[side] = Worker(versions[side], folder)
        yield {side: started[side] for side in versions}
    finally:
        for worker in started.values():
            worker.stop()
