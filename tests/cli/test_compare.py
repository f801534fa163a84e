"""`compare`, `history` and `selftest` as commands: exit codes, refusals, what is printed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from test_folders import folder

from pft_bench.cli import main
from pft_bench.harness.compare import live
from pft_bench.harness.compare.design import Samples


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["pft-bench", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out + err


@pytest.fixture(name="call")
def bound(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


@pytest.mark.parametrize(("ratio", "code", "in_ci"), [(0.5, 0, 0), (0.4, 3, 0), (0.6, 4, 4), (0.51, 5, 0)])
def test_exit_codes_of_folders(call, tmp_path: Path, ratio: float, code: int, in_ci: int) -> None:  # type: ignore[no-untyped-def]
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", ratio, seed=1)
    out = tmp_path / "comparison.json"
    found, text = call("compare", a, b, "--out", out)
    assert found == code, text
    assert "geometric mean" in text
    assert json.loads(out.read_text())["without_result"] == 0
    assert call("compare", a, b, "--ci")[0] == in_ci


def test_forced_comparisons_say_so(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1, machine="m2")
    code, text = call("compare", a, b)
    assert code == 2
    assert "--force" in text
    code, text = call("compare", a, b, "--force")
    assert code == 0
    assert "FORCED, not comparable: devices differ" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("one",), "two run folders"),
        ((), "two run folders"),
        (("one", "two"), "expected a run folder, got one, which does not exist"),
        (("--backends", "cpu"), "two names"),
        (("--backends", "cpu,cpu"), "two names"),
        (("--backends", "cpu,dense", "--margin", "0"), "--margin must be"),
        (("--backends", "cpu,dense", "--budget", "-1"), "--budget must be"),
        (("--baseline", "no-such-revision"), "must name a commit"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_measured(call, arguments: tuple[str, ...], told: str) -> None:  # type: ignore[no-untyped-def]
    code, text = call("compare", *arguments)
    assert code == 2
    assert told in text


def test_what_was_compared_before_a_signal_is_kept_and_shown(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    out, measured = tmp_path / "comparison.json", []

    def measure(layout: object, design: object, on_round: object) -> Samples:
        if measured:
            kept = json.loads(out.read_text())["rows"]  # on the disk before the next case begins
            assert kept[0]["samples"]["a_s"] == [2.0] * 12
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        measured.append(layout)
        return Samples((2.0,) * 12, (1.0,) * 12, (2.0,) * 12, 1, "all of them", 1.0)

    monkeypatch.setattr(live, "measure_pair", measure)
    given = ("--level", "op", "--sched", "64,16", "--preset", "light_x2", "--lr", "32x32", "--device", "cpu")
    code, text = call("compare", "--backends", "cpu,dense", *given, "--out", out)
    assert code == 130, text
    first, *others = json.loads(out.read_text())["rows"]
    assert first["judged"]["verdict"] == "FASTER"
    assert {row["reason"] for row in others} == {live.PENDING}
    assert re.search("FASTER", text), "the table is shown"
    assert "not measured yet" in text
    assert "interrupted" in text


def test_history_lists_and_draws(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for number, ratio in enumerate((0.5, 0.4)):
        folder(tmp_path / f"{number}", ratio, seed=number, created=f"2026-01-0{number + 1}T00:00:00+00:00")
    plot = tmp_path / "history.svg"
    code, text = call("history", tmp_path, "--plot", plot)
    assert code == 0
    assert "FASTER 0.80" in text
    assert "2 of 2 comparable steps changed" in text
    drawn = plot.read_text()
    assert drawn.startswith("<svg")
    assert "FASTER 0.80" in drawn
    for number in (0, 1):
        assert f'href="{number}/records.jsonl"' in drawn, "every point leads to its records"
    assert call("history", tmp_path, "--case", "nothing like it")[0] == 2


def test_selftest_prints_its_score(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from pft_bench.cli import selftest
    from pft_bench.harness.selftest.mutation import Outcome

    outcomes = [Outcome("zeros", "values", ("values",)), Outcome("side stream", "values", skipped="no GPU")]
    monkeypatch.setattr(selftest, "run_mutants", lambda: iter(outcomes))
    monkeypatch.setattr(selftest, "false_alarms", list)
    code, text = call("selftest")
    assert code == 0
    assert "killed 1/1, 1 skipped; false alarms: 0" in text
    outcomes.append(Outcome("stale", "values", ("ties",)))
    code, text = call("selftest")
    assert code == 1
    assert "SURVIVED" in text
    assert "killed 1/2" in text


def test_times_of_recorded_runs_stand_in_the_table_and_a_missing_run_is_told_once(
    call, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1)
    line = next(
        text for text in call("compare", a, b)[1].splitlines() if text.lstrip("│ ").startswith("sddmm K=16")
    )
    assert line.count(" ms") == 2, line
    other = folder(tmp_path / "other", kept=(7, 9))
    text = call("compare", a, other)[1]
    assert text.count(f"not in {other}") == 1
    assert text.count(f"not in {a}") == 1
    assert "4 cases: not in" in text
