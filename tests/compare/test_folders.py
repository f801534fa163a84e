"""Recorded runs against each other and over time: verdicts, refusals, what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pft_bench.cli.history import history as history_command
from pft_bench.cli.history import step
from pft_bench.harness.compare.folders import compare_folders
from pft_bench.harness.compare.history import history, problem_of, run_folders
from pft_bench.harness.measure.verdicts import Verdict
from pft_bench.harness.record import (
    Baseline,
    Case,
    CheckEntry,
    Record,
    RecordWriter,
    Status,
    Timing,
    read_records,
)

PASSED = CheckEntry("operator", True)
MACHINE = {
    "machine": "m1",
    "cpu": {"model": "one", "governor": "performance"},
    "gpu": None,
    "libraries": {"torch": "2.13.0"},
    "git": {"commit": "a" * 40, "dirty": False},
    "now": {"cpu_mhz": 2600},
}


def folder(
    path: Path,
    ratio: float = 0.5,
    *,
    seed: int = 0,
    drift: float = 1.0,
    method: str = "cpu-block",
    created: str = "2026-01-01T00:00:00+00:00",
    kept: tuple[int, ...] = (16, 64),
    **environment: Any,
) -> Path:
    """A run of `cpu` at `ratio` of dense, both `drift` times slower than on another day."""
    generator = np.random.default_rng(seed)
    with RecordWriter(path / "records.jsonl") as writer:
        for k in kept:
            base = drift * np.exp(generator.normal(0, 0.1, 20))  # what both see
            noise = np.exp(generator.normal(0, 0.004, (3, 20)))
            dense, again, cpu = base * noise[0], base * noise[1], ratio * base * noise[2]
            case = Case("op", "sddmm", "cpu", "cpu", "float32", "infer", 2, 0, {"tokens": 1024}, k=k)
            timing = Timing(
                method,
                4,
                tuple(cpu),
                tuple(range(20)),
                (),
                0,
                "enough",
                Baseline("dense", tuple(dense), tuple(again)),
            )
            writer.append(replace(Record.ok(case, "e1", [PASSED], timing=timing), created=created))
            own = Timing(method, 4, tuple(dense), tuple(range(20)), (), 0, "enough", None, tuple(again))
            writer.append(Record.ok(replace(case, backend="dense"), "e1", [PASSED], timing=own))
    (path / "environment.json").write_text(json.dumps({"e1": {**MACHINE, **environment}}))
    return path


def words(table: Any) -> list[Verdict]:
    return [item.verdict for item in table.judged]


def test_a_slower_machine_that_day_is_no_slower_kernel(tmp_path: Path) -> None:
    """Everything took 30% longer; relative to the baseline nothing changed."""
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1, drift=1.3)
    table = compare_folders(a, b)
    assert words(table) == [Verdict.SAME, Verdict.SAME]
    assert any("baseline itself moved" in line and "+2" in line for line in table.warnings)
    assert not table.forced


@pytest.mark.parametrize(("ratio", "word"), [(0.55, Verdict.SLOWER), (0.45, Verdict.FASTER)])
def test_changes_are_found(tmp_path: Path, ratio: float, word: Verdict) -> None:
    table = compare_folders(folder(tmp_path / "a"), folder(tmp_path / "b", ratio, seed=1))
    assert words(table) == [word, word]
    assert table.summary.mean is not None
    assert table.summary.mean.value == pytest.approx(ratio / 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"machine": "m2", "cpu": {"model": "two", "governor": "performance"}}, "devices differ: one"),
        ({"now": {"cpu_mhz": 3400}}, "clocks differ: 2600 and 3400"),
        (
            {"cpu": {"model": "one", "governor": "powersave"}},
            "clocks differ: governor performance, powersave",
        ),
        ({"method": "cuda-events-cold-l2"}, "methods differ: cpu-block, cuda-events-cold-l2"),
    ],
)
def test_other_devices_methods_and_clocks_are_refused_unless_forced(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1, **changed)
    with pytest.raises(ValueError, match=told):
        compare_folders(a, b)
    table = compare_folders(a, b, force=True)
    assert any(told in line for line in table.forced)
    assert len(words(table)) == 2


def test_clocks_that_wobble_are_the_same(tmp_path: Path) -> None:
    compare_folders(folder(tmp_path / "a"), folder(tmp_path / "b", seed=1, now={"cpu_mhz": 2610}))


def test_a_missing_environment_is_refused(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1)
    (b / "environment.json").unlink()
    with pytest.raises(ValueError, match="environment is missing"):
        compare_folders(a, b)


def test_other_versions_of_pytorch_are_told(tmp_path: Path) -> None:
    b = folder(tmp_path / "b", seed=1, libraries={"torch": "2.14.0"})
    assert any("2.13.0, 2.14.0" in line for line in compare_folders(folder(tmp_path / "a"), b).warnings)


def test_cases_of_one_run_and_failed_cases_have_a_reason(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", kept=(16, 64)), folder(tmp_path / "b", kept=(64, 128), seed=1)
    lost = Case("op", "spmm", "cpu", "cpu", "float32", "infer", 2, 0, {"tokens": 1024}, k=16)
    for path, status in ((a, Status.CRASHED), (b, Status.OOM)):
        with RecordWriter(path / "records.jsonl") as writer:
            writer.append(Record.without_result(lost, "e1", status, "planted"))
    table = compare_folders(a, b)
    reasons = {row.title: row.reason for row in table.rows if row.judged is None}
    assert "not in" in (reasons["sddmm K=16, cpu"] or "")
    assert "not in" in (reasons["sddmm K=128, cpu"] or "")
    assert "crashed in" in (reasons["spmm K=16, cpu"] or "")
    assert words(table) == [Verdict.SAME]


def test_history_marks_the_run_where_a_case_changed(tmp_path: Path) -> None:
    for number, ratio in enumerate((0.5, 0.5, 0.4, 0.4)):
        git = {"commit": f"{number}" * 40, "dirty": number == 3}
        path = tmp_path / f"2026-01-0{number + 1}"
        folder(path, ratio, seed=number, created=f"2026-01-0{number + 1}T00:00:00+00:00", git=git)
    folder(tmp_path / "2026-01-05", seed=9, created="2026-01-05T00:00:00+00:00", machine="m2")
    series = history(run_folders(tmp_path))
    assert [item.title for item in series] == ["sddmm K=16, cpu: 1024 tokens", "sddmm K=64, cpu: 1024 tokens"]
    for item in series:
        assert [point.commit for point in item.changes] == ["2" * 10]
        assert [point.change for point in item.points] == [
            None, Verdict.SAME, Verdict.FASTER, Verdict.SAME, None,
        ]  # fmt: skip
        assert item.points[3].commit == "3" * 10 + "+"
        assert "devices differ" in item.points[4].incomparable[0]
        assert item.points[0].relative == pytest.approx(0.5, rel=0.01)


def test_yardsticks_are_shown_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer of PyTorch's that a day made slower is no news of a kernel, and does not enter its correction."""
    names = {16: "sampled_addmm", 64: "composed-sampled-fresh", 128: "row_reads"}
    for number, ratio in enumerate((0.5, 0.8)):
        path = tmp_path / f"2026-01-0{number + 1}"
        folder(
            path, ratio, seed=number, kept=(16, 64, 128, 256), created=f"2026-01-0{number + 1}T00:00:00+00:00"
        )
        records = [
            replace(record, case=replace(record.case, backend=names.get(int(record.case.k or 0), "cpu")))
            if record.case.backend == "cpu"
            else record
            for record in read_records(path / "records.jsonl").records
        ]
        (path / "records.jsonl").unlink()
        with RecordWriter(path / "records.jsonl") as writer:
            for record in records:
                writer.append(record)
    found = {item.title.split(", ")[1].partition(":")[0]: item for item in history(run_folders(tmp_path))}
    assert set(found) == {*names.values(), "cpu"}
    for name in names.values():
        assert found[name].yardstick
        assert not found[name].changes
        assert found[name].points[1].relative == pytest.approx(0.8, rel=0.01)
        assert step(found[name].points[1]).startswith("not judged: 1.")
    assert [point.change for point in found["cpu"].points] == [None, Verdict.SLOWER]
    history_command(tmp_path, "", 0.02, None)
    told = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 comparable steps changed" in told
    assert "3 cases are yardsticks" in told


def test_cases_that_differ_in_their_input_alone_have_titles_of_their_own(tmp_path: Path) -> None:
    folder(tmp_path / "run")
    record = read_records(tmp_path / "run" / "records.jsonl").records[0]
    model = replace(record.case, op="model", preset="light_x2", shapes={"height": 32, "width": 48})
    half = replace(model, shapes={"windows": 1, "heads": 6}, preset=None, dtype="bfloat16", mode="train")
    assert problem_of(replace(record, case=model)) == "light_x2, 32x48 input"
    assert problem_of(replace(record, case=half)) == "1 window, 6 heads, train, bfloat16"


def test_a_run_held_to_an_instruction_set_is_no_step_of_the_others(tmp_path: Path) -> None:
    for number, ratio in enumerate((0.5, 0.9, 0.5, 0.9)):
        variables = {"PFT_CPU_ISA": "scalar"} if number % 2 else {}
        day = f"2026-01-0{number + 1}"
        created = f"{day}T00:00:00+00:00"
        folder(tmp_path / day, ratio, seed=number, kept=(16,), created=created, variables=variables)
    found = history(run_folders(tmp_path))
    assert [item.title for item in found] == [
        "sddmm K=16, cpu: 1024 tokens",
        "sddmm K=16, cpu: 1024 tokens (scalar)",
    ]
    assert [[point.change for point in item.points] for item in found] == [[None, Verdict.SAME]] * 2
