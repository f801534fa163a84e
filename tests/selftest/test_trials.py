"""Comparisons of known answer: written, resumed, counted, judged; and one of each kind for real."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pft_bench.cli.selftest import holds
from pft_bench.harness.compare.design import Samples
from pft_bench.harness.measure.verdicts import Verdict
from pft_bench.harness.selftest import trials
from pft_bench.harness.selftest.known_answers import KINDS, Kind, Trial, rates, read_trials
from pft_bench.harness.selftest.trials import run_trial, run_trials


def trial(kind: Kind, number: int, effect: float = 1.0, scale: float = 0.003) -> Trial:
    generator = np.random.default_rng(number)
    a, b, control = np.exp(generator.normal(0, scale, (3, 24)))
    samples = Samples(tuple(a), tuple(effect * b), tuple(control), 9, "planted", 1.0)
    return Trial(kind, number, "e", 1, 0.02, samples, 0.5, Verdict.SAME, "2026-01-01T00:00:00+00:00")


def test_a_trial_survives_its_file_with_six_digits() -> None:
    given = trial("A/A", 3).samples
    made = Trial.of("A/A", 3, "e", 1, 0.02, given)
    assert Trial.from_json(made.to_json()) == made
    assert made.samples.b_s != given.b_s
    assert made.samples.b_s == pytest.approx(given.b_s, rel=1e-5)
    line = json.loads(made.to_json())
    assert line["a_s"] == list(made.samples.a_s), "as lines of earlier versions have it"
    with pytest.raises(ValueError, match="not a pft_bench"):
        Trial.from_json('{"schema": "other"}')


def test_verdicts_are_recomputed_not_believed() -> None:
    """The stored word says SAME; the samples say 10% slower."""
    found = rates([trial("A/A", 0, 1.1), trial("A/A", 1)])[0]
    assert found.counts[Verdict.SLOWER] == 1
    assert (found.wrong, found.right, found.trials) == (1, 1, 2)


def test_a_reversed_or_equal_verdict_on_a_slowdown_is_wrong_and_undecided_is_not() -> None:
    effects = (0.9, 1.0, 1.1, 1.03)
    found = rates([trial("+5%", number, effect) for number, effect in enumerate(effects)])[1]
    assert (found.wrong, found.right) == (2, 1 + (found.counts[Verdict.SLOWER] - 1))
    assert not holds(found)
    undecided = rates([trial("A/A", number, 1.02, 0.05) for number in range(4)])[0]
    assert undecided.counts[Verdict.UNDECIDED] == 4
    assert holds(undecided)


@pytest.mark.parametrize(("wrong", "sound"), [(0, True), (2, True), (3, False)])
def test_two_percent_is_the_limit(wrong: int, sound: bool) -> None:
    found = rates([trial("A/A", number, 1.2 if number < wrong else 1.0) for number in range(100)])[0]
    assert holds(found) is sound


def test_slices_add_up_and_a_torn_line_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.jsonl"
    monkeypatch.setattr(trials, "run_trial", lambda kind, number, *_: trial(kind, number))
    assert len(list(run_trials(path, 2, "e", 1, math.inf))) == 4
    text = path.read_text()
    path.write_text(text[:-40])
    assert [(item.kind, item.number) for item in run_trials(path, 3, "e", 1, math.inf)] == [
        ("+5%", 1), ("A/A", 2), ("+5%", 2),
    ]  # fmt: skip
    assert sorted((item.kind, item.number) for item in read_trials(path)) == sorted(
        (kind, number) for kind in KINDS for number in range(3)
    )
    assert list(run_trials(path, 9, "e", 1, -1.0)) == []


def test_the_planted_slowdown_is_five_percent_more_work() -> None:
    sizes = {kind: trials.operands(trials.WINDOW_HEADS[kind], 0)["q"].numel() for kind in KINDS}
    assert sizes["+5%"] == pytest.approx(1.05 * sizes["A/A"])


def test_one_of_each_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No particular verdict can be asked of one comparison on a busy machine, but none may be wrong by much."""
    monkeypatch.setattr(trials, "Design", partial(trials.Design, budget_s=1.0))  # the fewest rounds
    for kind in KINDS:
        found = run_trial(kind, 0, "e", 1)
        seconds = found.samples
        assert len(seconds.a_s) == len(seconds.b_s) == len(seconds.control_s) >= 12
        assert found.verdict is found.evidence.verdict(0.05)
        assert 0.7 < found.evidence.ratio < 1.6
