"""Tables and plots as pure functions of records: units, failed rows, records without a comparison."""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pft_bench.harness.measure.roof import Roof
from pft_bench.harness.record import (
    Baseline,
    Case,
    CheckEntry,
    Flops,
    Memory,
    Record,
    RunFolder,
    Status,
    Timing,
)
from pft_bench.report import problem_lines, results_table, stage_table, words, write_plots, write_summary
from pft_bench.report.draw import pictures
from pft_bench.report.page import render
from pft_bench.report.tables import bytes_text, count_text, ordered_stages, row_line, seconds_text

SLOW = (1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03)


def case(backend: str = "cpu", **changes: Any) -> Case:
    values: dict[str, Any] = {
        "level": "layer",
        "op": "progressive_attention",
        "backend": backend,
        "device": "cpu",
        "dtype": "float32",
        "mode": "infer",
        "threads": 2,
        "seed": 0,
        "shapes": {"windows": 4, "heads": 6, "tokens": 1024, "head_dim": 40, "candidates": 64},
        "k": 64,
    }
    return Case(**(values | changes))


def record(
    backend: str = "cpu", factor: float = 0.1, stages: dict[str, float] | None = None, **changes: Any
) -> Record:
    compared = backend != "dense"
    timing = Timing(
        method="cpu",
        repeats=3,
        samples_s=tuple(s * factor for s in SLOW),
        rounds=tuple(range(len(SLOW))),
        dropped=(),
        order_seed=0,
        stop_reason="rounds",
        baseline=Baseline("dense", SLOW, SLOW) if compared else None,
        control_s=() if compared else SLOW,
    )
    return Record.ok(
        case(backend, **changes),
        "environment",
        (CheckEntry("attention out", True, ""),),
        timing=timing,
        stages_s=stages,
        flops=Flops(counted_flops=2_000_000_000, kernel_flops=10**9, kernel_bytes=10**8),
        memory=Memory(peak_allocated_bytes=3 << 20, peak_allocated_source="torch-profiler-events"),
    )


def failed(backend: str = "cpu") -> Record:
    reason = "attention out: 3 entries off"
    checks = (CheckEntry("attention out", False, "3 entries off"),)
    return Record.without_result(case(backend), "environment", Status.FAILED, reason, checks=checks)


MODEL: dict[str, Any] = {
    "level": "model",
    "op": "model",
    "shapes": {"height": 64, "width": 64},
    "k": None,
    "preset": "light_x4",
    "schedule": (1024, 64),
    "options": {"sched": "1024,64"},
}
ROOF = Roof(1e11, 1e10)


def text(table: Any) -> str:
    file = StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.5, "2.5 s"), (1.0, "1 s"), (0.0123, "12.3 ms"), (5e-5, "50 us"), (1.234e-7, "0.123 us")],
)
def test_seconds_have_the_unit_that_suits_them(seconds: float, shown: str) -> None:
    assert seconds_text(seconds) == shown


def test_unknown_counts_are_a_dash_and_never_zero() -> None:
    assert bytes_text(None) == count_text(None, "FLOP") == "-"
    assert bytes_text(3 << 20) == "3.0 MiB"
    assert bytes_text(5 << 29) == "2.50 GiB"
    assert count_text(2_000_000_000, "FLOP") == "2 GFLOP"


def test_a_row_shows_latency_speedup_verdict_memory_rate_and_check() -> None:
    shown = text(results_table([record("dense", 1.0), record("cpu", 0.1)], "layer"))
    for part in ("64 -> 64", "100 ms", "10x [10, 10]", "FASTER", "baseline", "3.0 MiB", "2 G", "ok"):
        assert part in shown
    assert "SAME" in text(results_table([record("dense", 1.0), record("cpu", 1.0)], "layer"))


def test_of_the_compositions_a_step_shows_the_fastest_that_has_a_time() -> None:
    """Those that failed have no time and stay in sight; each step has its own fastest."""
    times = {"composed-sampled": 0.5, "composed-dense": 0.4, "composed-dense-fresh": 0.9}
    records = [record("dense", 1.0), *(record(name, time) for name, time in times.items())]
    lost, other = failed("composed-sampled-fresh"), record("composed-sampled", 0.5, k=16)
    shown = text(results_table([*records, lost, other], "layer"))
    names = [word for line in shown.splitlines() for word in line.split() if re.match(r"composed-\w", word)]
    assert names == ["composed-dense", "composed-sampled-fresh", "composed-sampled"]
    assert "the fastest way of each step; all: summary.csv" in shown
    assert "composed" not in text(results_table([record("dense", 1.0), record("cpu", 0.1)], "layer"))


def test_a_row_in_one_line_has_its_time_or_its_reason() -> None:
    assert row_line(record("cpu", 0.1)) == "layer 64 -> 64 on cpu: check ok, 100 ms, 10x [10, 10] FASTER"
    assert row_line(record("dense", 1.0)) == "layer 64 -> 64 on dense: check ok, 1 s, baseline"


def test_a_failed_row_has_no_number_at_all() -> None:
    shown = text(results_table([failed()], "layer"))
    row = next(line for line in shown.splitlines() if "FAILED" in line)
    assert " ms" not in row
    assert "1x" not in row
    assert problem_lines([record(), failed()]) == [
        "layer 64 -> 64 on cpu: failed: attention out: 3 entries off"
    ]


def test_stages_are_in_their_order_and_add_up() -> None:
    made = record(stages={"other": 0.01, "ffn": 0.05, "odd": 0.01, "projection": 0.03}, **MODEL)
    assert ordered_stages([made]) == ["projection", "ffn", "other", "odd"]
    shown = text(stage_table([made]))
    assert "50%" in shown
    assert "100 ms" in next(line for line in shown.splitlines() if "sum" in line)
    assert stage_table([record()]) is None


def test_summary_has_units_in_its_names_and_a_row_a_record(tmp_path: Path) -> None:
    records = [record("dense", 1.0), record(), failed("reference")]
    write_summary(records, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["backend"] for row in rows] == ["dense", "cpu", "reference"]
    assert float(rows[1]["median_s"]) == pytest.approx(0.1)
    assert rows[2]["median_s"] == ""
    assert rows[2]["reason"] == "attention out: 3 entries off"


def run_folder(path: Path, records: list[Record], roof: Roof | None = None) -> RunFolder:
    environment = {"now": {"roof": None if roof is None else asdict(roof)}}
    return RunFolder(path, tuple(records), {"environment": environment})


def drawn(*arguments: Any) -> list[str]:
    return [path.stem for path in write_plots(run_folder(*arguments))]


def test_plots_show_what_the_records_hold_and_leave_out_what_they_do_not(tmp_path: Path) -> None:
    from skimage import io

    assert drawn(tmp_path, []) == []
    assert drawn(tmp_path, [failed()], ROOF) == []
    layers = [record("dense", 1.0), record()]
    assert drawn(tmp_path, layers, ROOF) == ["latency_vs_k", "memory_vs_k", "roofline"]
    model = [record("dense", 1.0, {"ffn": 1.0}, **MODEL), record("cpu", 0.5, {"ffn": 0.5}, **MODEL)]
    names = drawn(tmp_path, [*layers, *model, failed("reference")], ROOF)
    assert names == ["latency_vs_k", "memory_vs_k", "roofline", "pareto", "speedup", "stages"]
    for name in names:
        assert io.imread(tmp_path / f"{name}.png").std() > 5


def test_a_selecting_step_alone_and_a_missing_roof_can_be_drawn(tmp_path: Path) -> None:
    shapes = {**case().shapes, "candidates": 1024}
    assert len(drawn(tmp_path, [record(shapes=shapes)])) == 2
    assert len(drawn(tmp_path, [record(shapes=shapes)], ROOF)) == 3


def test_a_backend_that_was_refused_is_named_in_the_legend() -> None:
    folder = run_folder(Path("run"), [record("dense", 1.0), record(), failed("mine")], ROOF)
    for picture in pictures(folder):
        assert picture.figure.absent == ("mine: failed its check",)
        assert "mine: failed its check" in picture.wide.svg(lambda made: made.case_id)
    assert all(
        not made.figure.absent for made in pictures(run_folder(Path("run"), [record(), failed()], ROOF))
    )


def test_memory_that_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path, [replace(record(), memory=Memory())]) == ["latency_vs_k"]


def test_each_figure_has_the_roof_and_the_records_of_its_own_environment() -> None:
    """A folder with shares of two machines: the second is ten times slower, and so is its roof."""
    here = [record("dense", 1.0), record()]
    there = [replace(made, environment="elsewhere") for made in (record("dense", 9.0), record("cpu", 0.9))]
    roofs = {"environment": ROOF, "elsewhere": Roof(1e10, 1e9)}
    known = {name: {"now": {"roof": asdict(roof)}} for name, roof in roofs.items()}
    folder = RunFolder(Path("run"), (*here, *there), known)
    made = {picture.figure.key: picture.figure for picture in pictures(folder)}
    assert list(made) == [
        f"{name}_{where}" for where in roofs for name in ("latency_vs_k", "memory_vs_k", "roofline")
    ]
    for where, roof in roofs.items():
        latency, roofline = made[f"latency_vs_k_{where}"], made[f"roofline_{where}"]
        assert roofline.roof == roof
        assert latency.floor == ((64, roof.floor_s(10**9, 10**8)),)
        assert {point.record.environment for point in latency.points} == {where}
        assert latency.caption.endswith(f"Environment {where}.")
        assert latency.setting.endswith(f"environment {where}")
        assert words.rate(roof.flops_per_s) in roofline.caption
    text = render(folder)
    assert all(f'id="figure-{key}"' in text for key in made)
