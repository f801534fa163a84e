"""Live progress of a sweep: which case, which round, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.progress import BarColumn, TimeElapsedColumn

from ..common.terminal import Console, Words, progress_bar
from ..harness.cases import Group
from ..harness.record import Record, Status
from ..report.tables import row_line, without_slower_compositions

REFRESHES_PER_SECOND = 2
"""Few, for the bar is drawn on the processors that are being timed."""
QUIET_S = 20.0
"""Without a terminal, at least so long between two lines that only tell where the work stands."""
STEPS = {
    "check": "checking",
    "warm-up": "warming up",
    "memory, FLOPs and stages": "memory, FLOPs and stages of",
}
"""Phases that belong to one contender, in front of its name."""


class StepLines:
    """Tells in lines where the work stands, where no terminal shows a bar; not a step that ended meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at, self._last = time.perf_counter(), ""

    def tell(self, text: str) -> None:
        """A line, unless it was told already or another line came within `QUIET_S`."""
        if self._console.is_terminal or text == self._last or time.perf_counter() - self._at < QUIET_S:
            return
        self._last = text
        self._console.print(f"{text} ...")
        self.heard()

    def heard(self) -> None:
        """Something else was printed just now."""
        self._at = time.perf_counter()


def step_words(rounds: int, planned: int, doing: str, contender: str) -> str:
    """What is under way: `checking cpu`, `timing, round 3/20`."""
    if doing == "timing" and planned:
        return f"timing, round {rounds + 1}/{planned}"
    return f"{STEPS[doing]} {contender}" if contender and doing in STEPS else doing


class Display:
    """A bar that moves with the rounds, by the rough cost of each group; a `pft_bench.harness.sweep.Watcher`.

    Where no terminal shows the bar, lines tell the steps. Without `groups` nobody knows how many there will be: it
    counts them and promises nothing.
    """

    def __init__(self, console: Console, groups: Sequence[Group] = ()) -> None:
        self._console, self._steps = console, StepLines(console)
        self._bar = progress_bar(
            console,
            Words("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            Words("{task.fields[left]}"),
            spinner=True,
            refresh_per_second=REFRESHES_PER_SECOND,
        )
        self._of = f"/{len(groups)}" if groups else ""
        self._total = sum(group.cost for group in groups)
        self._task = self._bar.add_task("starting", total=self._total or None, left="")
        self._done, self._number = 0.0, 0
        self._started = time.perf_counter()
        self._group: Group | None = None

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update(self._task, description="done", left="")
        self._bar.stop()

    def start(self, group: Group) -> None:
        """A group begins."""
        self._group = group
        self._number += 1
        self._show("set-up", 0.0)

    def progress(self, rounds: int, planned: int, doing: str, contender: str = "") -> None:
        """Where it stands."""
        assert self._group is not None
        share = min(rounds / planned, 1.0) * self._group.cost if planned else 0.0
        self._show(step_words(rounds, planned, doing, contender), share)

    def finish(self, group: Group, records: Sequence[Record]) -> None:
        """Count `group` as done, and show its rows at once: a long run tells something from its first group on."""
        self._done += group.cost
        self._bar.update(self._task, completed=self._done)
        for record in without_slower_compositions(records):
            self._console.print(row_line(record), style=None if record.status is Status.OK else "yellow")
        self._steps.heard()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, style="yellow")

    def _show(self, doing: str, share: float) -> None:
        assert self._group is not None
        description = f"{self._number}{self._of} {self._group.title}: {doing}"
        self._steps.tell(description)
        self._bar.update(
            self._task,
            description=description,
            completed=self._done + share,
            left=self._left(share),
        )

    def _left(self, share: float) -> str:
        done = self._done + share
        if done <= 0 or not self._total:
            return ""
        seconds = (time.perf_counter() - self._started) / done * (self._total - done)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"
