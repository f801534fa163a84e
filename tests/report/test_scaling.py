"""The figure of thread scaling: speed-up over one thread in the same rounds, beside the ideal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded import Page

from pft_bench.harness.record import Baseline, Case, CheckEntry, Record, RunFolder, Status, Timing
from pft_bench.report import write_plots
from pft_bench.report.figures import figures
from pft_bench.report.page import headlines, render

ALONE = (1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03)
LAYER: dict[str, Any] = {"op": "progressive_attention", "k": 64}
MODEL: dict[str, Any] = {
    "op": "model",
    "preset": "light_x4",
    "schedule": (1024, 64),
    "options": {"sched": "1024,64"},
}


def case(work: dict[str, Any], threads: int, backend: str = "cpu") -> Case:
    layer = {"windows": 4, "heads": 6, "tokens": 1024, "head_dim": 40, "candidates": 64}
    return Case(
        level="threads",
        backend=backend,
        device="cpu",
        dtype="float32",
        mode="infer",
        threads=threads,
        seed=0,
        shapes=layer if work is LAYER else {"height": 64, "width": 64},
        **work,
    )


def record(work: dict[str, Any], threads: int, speedup: float = 1.0, backend: str = "cpu") -> Record:
    """Samples that are those of one thread, divided; each round has its own noise."""
    noise = (0.0, 0.01, -0.01, 0.02, -0.02, 0.0, 0.01)
    timing = Timing(
        method="cpu-block",
        repeats=1,
        samples_s=ALONE
        if threads == 1
        else tuple(s / speedup * (1 + e) for s, e in zip(ALONE, noise, strict=True)),
        rounds=tuple(range(len(ALONE))),
        dropped=(),
        order_seed=0,
        stop_reason="rounds",
        baseline=None if threads == 1 else Baseline("1 thread", ALONE, ALONE),
        control_s=ALONE if threads == 1 else (),
    )
    return Record.ok(case(work, threads, backend), "here", (CheckEntry("as", True),), timing=timing)


def failed(work: dict[str, Any], threads: int) -> Record:
    return Record.without_result(case(work, threads), "here", Status.FAILED, "result as on 1 thread: a bit")


RECORDS = [
    *(record(LAYER, n, s) for n, s in ((1, 1.0), (2, 1.9), (4, 3.6))),
    *(record(MODEL, n, s) for n, s in ((1, 1.0), (2, 1.5), (4, 2.0))),
]


def made(records: list[Record]):
    return [figure for figure in figures(records, lambda _: None) if figure.key.startswith("threads")]


def test_speedups_with_their_intervals_beside_the_ideal() -> None:
    (figure,) = made(RECORDS)
    assert [series.name for series in figure.series] == ["64 → 64", "model 1024,64"]
    assert (figure.floor, figure.floor_name) == (((1.0, 1.0), (4.0, 4.0)), "ideal")
    for series, expected in zip(figure.series, ((1.0, 1.9, 3.6), (1.0, 1.5, 2.0)), strict=True):
        assert [point.x for point in series.points] == [1, 2, 4]
        assert [point.y for point in series.points] == pytest.approx(expected, rel=0.02)
        for point in series.points[1:]:
            assert point.y_bar is not None
            assert point.y_bar[0] < point.y < point.y_bar[1]
        assert series.points[0].y_bar is None, "one thread is the measure"
    assert figure.points[1].label == "64 -> 64 on cpu, 2 threads"


def test_each_point_of_the_page_leads_to_its_samples() -> None:
    page = Page(render(RunFolder(Path("run"), tuple(RECORDS), {})))
    (drawn,) = [found for found in page.all("figure") if found.attributes["id"] == "figure-threads"]
    points = [a.attributes for a in drawn.all("a") if "point" in a.attributes.get("class", "")]
    assert len(points) == 2 * len(RECORDS), "wide and narrow"
    raw = {found.attributes["id"] for found in page.all("details") if "id" in found.attributes}
    known = {made.case_id: made for made in RECORDS}
    for point in points:
        of = known[point["data-case"]]
        assert point["href"] == f"#{of.case_id}"
        assert of.case_id in raw
        assert float(point["data-x"]) == of.case.threads
        ratio = of.derived.ratio if of.derived is not None else None
        assert float(point["data-y"]) == (1.0 if ratio is None else 1 / ratio)
    marks = {
        found.attributes["d"] for found in drawn.all("path") if found.attributes.get("id", "").startswith("m")
    }
    assert len(marks) == 2, "each work has its mark"
    assert "ideal" in drawn.words()


def test_cards_are_of_all_threads_never_a_mean_over_different_numbers() -> None:
    cards = headlines(RECORDS)
    assert [(card["title"], card["backend"], card["count"]) for card in cards] == [
        ("One attention layer", "cpu, 4 threads", 1),
        ("Whole model", "cpu, 4 threads", 1),
    ]


def test_no_figure_without_a_comparison() -> None:
    assert made([record(LAYER, 1)]) == []
    assert made([record(LAYER, 1), failed(LAYER, 2)]) == []
    assert made([]) == []
    alone = record(LAYER, 2)
    assert alone.timing is not None
    lost = Record.ok(alone.case, "here", alone.checks, timing=replace(alone.timing, baseline=None))
    (figure,) = made([failed(LAYER, 1), lost, *RECORDS[3:]])
    assert [series.name for series in figure.series] == ["model 1024,64"]


def test_a_figure_for_each_backend_and_each_is_drawn(tmp_path: Path) -> None:
    dense = [record(LAYER, n, s, "dense") for n, s in ((1, 1.0), (2, 1.7))]
    assert [figure.key for figure in made([*RECORDS, *dense])] == ["threads_cpu", "threads_dense"]
    names = [path.name for path in write_plots(RunFolder(tmp_path, (*RECORDS, *dense), {}))]
    assert names == ["threads_cpu.png", "threads_dense.png"]
