"""Tables and plots as pure functions of records: units, failed rows, records without a comparison."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pft_bench.harness.measure.roof import Roof
from pft_bench.harness.record import Baseline, Case, CheckEntry, Flops, Memory, Record, Status, Timing
from pft_bench.report import problem_lines, results_table, stage_table, write_plots, write_summary
from pft_bench.report.tables import bytes_text, count_text, ordered_stages, seconds_text

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


def test_plots_show_what_the_records_hold_and_leave_out_what_they_do_not(tmp_path: Path) -> None:
    from skimage import io

    assert write_plots([], tmp_path, None) == []
    assert write_plots([failed()], tmp_path, ROOF) == []
    layers = [record("dense", 1.0), record()]
    assert [path.name for path in write_plots(layers, tmp_path, ROOF)] == [
        "latency_vs_k.png",
        "memory_vs_k.png",
        "roofline.png",
    ]
    model = [record("dense", 1.0, {"ffn": 1.0}, **MODEL), record("cpu", 0.5, {"ffn": 0.5}, **MODEL)]
    written = write_plots([*layers, *model, failed("reference")], tmp_path, ROOF)
    assert [path.name for path in written] == [
        "latency_vs_k.png",
        "memory_vs_k.png",
        "roofline.png",
        "pareto.png",
        "stages.png",
        "speedup.png",
    ]
    for path in written:
        assert io.imread(path).std() > 5


def test_a_selecting_step_alone_and_a_missing_roof_can_be_drawn(tmp_path: Path) -> None:
    shapes = {**case().shapes, "candidates": 1024}
    assert len(write_plots([record(shapes=shapes)], tmp_path, None)) == 2
    assert len(write_plots([record(shapes=shapes)], tmp_path, ROOF)) == 3


def test_memory_that_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    plain = replace(record(), memory=Memory())
    assert [path.name for path in write_plots([plain], tmp_path, None)] == ["latency_vs_k.png"]
