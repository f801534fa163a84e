"""Where no terminal shows a bar, lines tell where a long group stands, and not too many of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pft_bench.cli import progress
from pft_bench.common.terminal import Console

GROUP: Any = SimpleNamespace(title="model 16,5", cost=1.0)


def test_steps_are_told_in_lines_at_most_every_twenty_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now))
    display = progress.Display(Console(width=200), [GROUP])
    display.start(GROUP)
    for seconds, *step in (
        (5, 0, 0, "check", "dense"),  # too soon
        (25, 0, 0, "check", "cpu"),
        (60, 0, 0, "check", "cpu"),  # told already
        (61, 0, 0, "warm-up", "cpu"),
        (70, 2, 20, "timing", "cpu"),  # too soon
        (90, 2, 20, "timing", "dense"),
        (120, 20, 20, "memory, FLOPs and stages", "cpu"),
    ):
        now = float(seconds)
        display.progress(*step)
    now = 150.0
    display.finish(GROUP, [])
    display.start(GROUP)  # too soon after its rows
    assert capsys.readouterr().out.splitlines() == [
        "1/1 model 16,5: checking cpu ...",
        "1/1 model 16,5: warming up cpu ...",
        "1/1 model 16,5: timing, round 3/20 ...",
        "1/1 model 16,5: memory, FLOPs and stages of cpu ...",
    ]


def test_a_terminal_has_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    terminal: Any = SimpleNamespace(is_terminal=True, print=lambda *_: pytest.fail("a line beside the bar"))
    progress.StepLines(terminal).tell("checking cpu")
