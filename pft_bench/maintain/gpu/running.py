"""One step of a session under way: where its results go, how long it may take, and how its items run.

An item is one thing that can be right or wrong. Items run in a process of their own (`harness.sweep.Workers`), and each
one's result is on the disk before the next begins: a crash costs the item that crashed, a hang ends at the step's
limit, and an error that leaves CUDA unusable for its process is followed by a fresh process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...backends import get
from ...common.terminal import Console
from ...common.text import plain, told
from ...harness.sweep import Death, Workers
from ...harness.sweep.board import Board
from ...harness.sweep.isolation import TICK_S

RESULTS, LOG, NCU, SUMMARY = "results.jsonl", "log.txt", "ncu.csv", "summary.md"
"""What a session writes, beside the run folders of its ladder."""
SHOWN = 300
"""Characters of a reason on the terminal; the results have all of it."""
LOSSES = 3
"""Processes that a step may lose before it is given up: the device is gone then, not an item wrong."""
GRACE_S = 10.0
"""After its time is up, a process that does not start or does not die is left behind."""
GOOD, BAD, OPEN = ("ok",), ("failed", "error", "crashed", "timeout", "missing"), ("left out", "not rehearsed")
"""How an item can end: right; wrong, or nobody has looked; for lack of time, or of a GPU in a rehearsal."""


@dataclass(frozen=True)
class Session:
    """What every step of a session is given. `lr_hw` is the size of the ladder's image."""

    out: Path
    rehearse: bool = False
    lr_hw: tuple[int, int] = (192, 352)

    @property
    def family(self) -> str:
        """The backend whose kernels are at stake."""
        return "cuda-emu" if self.rehearse else "cuda"

    @property
    def device(self) -> str:
        """Where tensors lie."""
        return "cpu" if self.rehearse else "cuda"

    def others(self, *names: str) -> tuple[str, ...]:
        """Those of the named backends that can run on the device."""
        return tuple(n for n in names if self.device in get(n).devices and get(n).available() is None)


class ItemResult(NamedTuple):
    """What an item found: why it is wrong (nothing: it is right), and facts to be kept."""

    failures: tuple[str, ...] = ()
    facts: dict[str, Any] = {}  # noqa: RUF012 - nobody writes it


class Item(NamedTuple):
    """One thing that can be right or wrong."""

    name: str
    run: Callable[[], ItemResult]


Items = Callable[[Session], Iterable[Item]]


def write_result(
    path: Path, step: str, item: str, status: str, detail: str = "", seconds: float = 0.0, **facts: Any
) -> None:
    """One line more in the session's results."""
    found = {"step": step, "item": item, "status": status, "detail": detail, "seconds": round(seconds, 3)}
    with path.open("a") as file:
        file.write(json.dumps(found | ({"facts": facts} if facts else {})) + "\n")


class _Overdue(Exception):
    """A process is neither done nor dead."""


@dataclass
class RunningStep:
    """One step: `until` is when it must end, by time.monotonic()."""

    session: Session
    name: str
    until: float
    workers: Workers
    _shown: int = field(default=0, init=False)

    @property
    def path(self) -> Path:
        """The session's results."""
        return self.session.out / RESULTS

    @property
    def left_s(self) -> float:
        """Seconds until it must end."""
        return max(0.0, self.until - time.monotonic())

    def results(self) -> list[dict[str, Any]]:
        """What this step has so far."""
        return [found for found in read_results(self.session.out) if found["step"] == self.name]

    def record(self, item: str, status: str, detail: str = "", seconds: float = 0.0, **facts: Any) -> None:
        """Keep a result, and show it."""
        write_result(self.path, self.name, item, status, detail, seconds, **facts)
        self.show()

    def show(self) -> None:
        """Print the results that came since the last call."""
        found = self.results()
        for one in found[self._shown :]:
            detail = one["detail"] if len(one["detail"]) <= SHOWN else f"{one['detail'][:SHOWN]}..."
            self.say(f"{self.name}: {one['item']}: {one['status']}{': ' * bool(detail)}{detail}")
        self._shown = len(found)

    def say(self, text: str) -> None:
        """To the terminal and the log."""
        say(self.session, text)

    def run_items(self, items: Items) -> None:
        """All items, as far as they fit."""
        names = [item.name for item in items(self.session)]
        losses, reason = 0, "no time left"
        while left := [name for name in names if name not in self._done()]:
            if losses >= LOSSES:
                reason = f"{LOSSES} processes were lost before"
                break
            if self.left_s <= 0:
                break
            work = partial(_run, items, self.session, self.name, self._done(), self.until)
            ended = self.run_worker(work)
            if isinstance(ended, Death):
                guilty = next((name for name in left if name not in self._done()), "the end")
                self.record(guilty, ended.status, ended.reason)
            elif ended:
                break  # out of time
            losses += 1
        self.show()
        for name in names:
            if name not in self._done():
                self.record(name, "left out", reason)

    def run_worker(self, work: Callable[[Board], Any]) -> Any | Death:
        """What `work` returns in a process of its own, or how that died, at the step's end at the latest."""
        # a tick more than the worker gives itself: it looks at the clock between two items
        self.workers.timeout_s = max(1.0, self.left_s + TICK_S)
        try:
            return self.workers.run(work, self._watch, limited=False)
        except _Overdue:
            return Death("timeout", "neither started nor killed in time", None, "")
        finally:
            self.keep_output()

    def _watch(self, _: object) -> None:
        self.show()
        if time.monotonic() > self.until + GRACE_S:
            raise _Overdue

    def keep_output(self) -> None:
        """What a worker wrote, into the log."""
        if text := self.workers.output().strip():
            with (self.session.out / LOG).open("a") as log:
                log.write(text + "\n")

    def _done(self) -> frozenset[str]:
        return frozenset(found["item"] for found in self.results())


def _run(items: Items, session: Session, step: str, done: frozenset[str], until: float, board: Board) -> bool:
    """In a worker: the items that are not done; whether time ran out. False: all done, or CUDA is unusable here."""
    board.turn(0, "check")
    for item in items(session):
        if item.name in done:
            continue
        if time.monotonic() >= until:
            return True
        started, unusable = time.monotonic(), False
        try:
            found = item.run()
            status, detail = ("failed", "; ".join(found.failures)) if found.failures else ("ok", "")
        except Exception as error:
            found, status, detail = ItemResult(), "error", f"{type(error).__name__}: {told(error)}"
            unusable = session.device == "cuda" and not _usable()
        seconds = time.monotonic() - started
        write_result(session.out / RESULTS, step, item.name, status, plain(detail), seconds, **found.facts)
        if unusable:
            return False
    return False


def _usable() -> bool:
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def read_results(out: Path) -> list[dict[str, Any]]:
    """All results of a session; a line that its writer did not finish is left out."""
    try:
        lines = (out / RESULTS).read_text().split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:-1] if line.endswith("}")]


def say(session: Session, text: str) -> None:
    """A line for the terminal and the log."""
    Console().print(text)
    with (session.out / LOG).open("a") as log:
        log.write(text + "\n")
