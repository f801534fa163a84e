"""The page of a run: its numbers are the records', it needs nothing from outside, and everybody can read it."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from recorded import DATA, Element, Page, committed, copy, raw_records

from pft_bench.harness.record import Record, Status
from pft_bench.report import read_folder
from pft_bench.report.page import render
from pft_bench.report.write import texts

UNITS = {
    "s": 1.0,
    "ms": 1e-3,
    "µs": 1e-6,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "×": 1.0,
    "%": 0.01,
    "": 1.0,
}
UNITS |= {f"{p}{u}": f for p, f in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)) for u in ("", "FLOP/s")}
ATTENTION = ("logits", "select", "av", "attention")


@pytest.fixture(scope="module", params=["layer", "op"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(request.param, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return render(read_folder(folder))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def expected(record: dict[str, Any], name: str) -> float | None:
    """A number of the page, computed from the raw record without the package."""
    derived, stages = record["derived"] or {}, record["stages_s"] or {}
    if name == "speedup":
        return 1 / derived["ratio"]
    if name in ("speedup_low", "speedup_high"):
        return 1 / derived["ratio_high" if name == "speedup_low" else "ratio_low"]
    if name == "median_s" or name.startswith("latency_vs_k"):
        return statistics.median(record["timing"]["samples_s"])
    if name == "mad_s":
        samples = record["timing"]["samples_s"]
        middle = statistics.median(samples)
        return statistics.median(abs(s - middle) for s in samples)
    if name.startswith("roofline"):
        return record["flops"]["kernel_flops"] / statistics.median(record["timing"]["samples_s"])
    if name in ("peak_allocated_bytes", "pareto") or name.startswith("memory_vs_k"):
        return record["memory"]["peak_allocated_bytes"]
    if name.startswith("stage_"):
        return stages[name.removeprefix("stage_").removesuffix("_s")]
    if name in ("attention_share", "amdahl_gain"):
        share = sum(stages.get(stage, 0.0) for stage in ATTENTION) / sum(stages.values())
        return share if name == "attention_share" else 1 / (1 - share)
    return record["flops"].get(name, record["memory"].get(name))


def shown(words: str) -> float:
    """The number that a reader reads."""
    number, unit = re.fullmatch(r"([\d.,]+) ?(.*)", words.strip()).groups()  # type: ignore[union-attr]
    return float(number.replace(",", "")) * UNITS[unit]


def test_every_number_of_the_page_is_that_of_the_record(page: Page, folder: Path) -> None:
    records = raw_records(folder)
    held = 0
    for element in page.all("data"):
        value = float(element.attributes["value"])
        if element.attributes.get("data-field", "memory_ratio") != "memory_ratio":
            record = records[element.attributes["data-case"]]
            wanted = expected(record, element.attributes["data-field"])
            assert value == pytest.approx(wanted, rel=1e-12), element
            held += 1
        assert shown(element.words()) == pytest.approx(
            value, rel=5e-3, abs=5e-3 if "%" in element.words() else 0
        ), element
    timed = [record for record in records.values() if record["timing"]]
    assert held > 8 * len(timed)


def test_every_point_is_where_its_record_says_and_leads_to_its_samples(page: Page, folder: Path) -> None:
    records = raw_records(folder)
    ids = {element.attributes["id"] for element in page.all("details") if "id" in element.attributes}
    count = 0
    for figure in page.all("figure"):
        key = figure.attributes["id"].removeprefix("figure-")
        points = [a for svg in figure.all("svg") for a in svg.all("a")]
        assert len(points) % 2 == 0
        assert len(points) > 2
        for point in points:
            record = records[point.attributes["data-case"]]
            assert point.attributes["href"] == f"#{record['case_id']}"
            assert record["case_id"] in ids
            assert point.attributes["aria-label"]
            assert float(point.attributes["data-y"]) == pytest.approx(expected(record, key), rel=1e-12)
            count += 1
        ordered = sorted(points[: len(points) // 2], key=lambda p: float(p.attributes["data-y"]))
        heights = [float(point.all("circle")[0].attributes["cy"]) for point in ordered]
        assert heights == sorted(heights, reverse=True), "higher values must be drawn higher"
    assert count


def test_raw_samples_are_all_there_with_every_digit(page: Page, folder: Path) -> None:
    blocks = {element.attributes["aria-label"]: element.words() for element in page.all("pre")}
    for case_id, record in raw_records(folder).items():
        text = blocks[f"Samples of {case_id}"]
        rows = [line.split(",") for line in text.strip().splitlines()[1:]]
        assert [float(row[1]) for row in rows] == record["timing"]["samples_s"]
        if record["timing"]["baseline"]:
            assert [float(row[2]) for row in rows] == record["timing"]["baseline"]["samples_s"]
            assert [float(row[3]) for row in rows] == record["timing"]["baseline"]["control_s"]


def test_page_loads_nothing(page: Page, text: str) -> None:
    for tag in ("img", "iframe", "object", "embed"):
        assert not page.all(tag)
    assert all("src" not in script.attributes for script in page.all("script"))
    assert all(link.attributes["href"].startswith("data:") for link in page.all("link"))
    assert not re.search(r"https?:|@import|url\(", text)


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    def walk(element: Element) -> list[Element]:
        return [element, *(other for child in element.children for other in walk(child))]

    everything = walk(page.root)
    ids = [element.attributes["id"] for element in everything if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    targets = [a.attributes["href"] for a in page.all("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert {target for target in targets if not target.startswith("#")} == {"records.jsonl"}


def test_tables_have_headings_and_rows_are_as_wide_as_they(page: Page) -> None:
    for table in page.all("table"):
        heads = table.all("thead")[0].all("th")
        assert all(head.attributes.get("scope") == "col" for head in heads)
        for row in table.all("tbody")[0].all("tr"):
            cells = [cell for cell in row.children if cell.tag in ("th", "td")]
            assert len(cells) == len(heads)
            assert cells[0].tag == "th"
            assert cells[0].attributes.get("scope") == "row"


def test_a_verdict_is_a_sign_and_a_word(page: Page, folder: Path) -> None:
    shown = [b.words().strip() for b in page.all("b") if b.attributes.get("class", "").startswith("verdict")]
    signs = {"FASTER": "▲ faster", "SLOWER": "▼ slower", "SAME": "= same", "UNDECIDED": "? undecided"}
    found = [r["derived"]["verdict"] for r in raw_records(folder).values() if r["derived"]["verdict"]]
    assert sorted(shown) == sorted(signs[verdict] for verdict in found)
    assert shown


def test_equal_records_give_equal_texts(folder: Path) -> None:
    first, second = ({n: t() for n, t in texts(read_folder(folder)).items()} for _ in range(2))
    assert first == second


def test_backends_differ_in_mark_and_dash_not_only_in_colour() -> None:
    from pft_bench.report.svg import LOOKS, OTHER_LOOKS, mark

    kinds = range(len(LOOKS) + OTHER_LOOKS)
    assert len({str(mark(kind, 50, 50)) for kind in kinds}) == len(kinds)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark() -> None:
    style = (resources.files("pft_bench.report") / "chart.css").read_text()
    blocks = re.findall(r":root \{(.*?)\n *\}", style, flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))
        for ground in ("paper", "panel"):
            for name in ("ink", "soft", "link", "good", "bad", "unsure", *(f"c{i}" for i in range(10))):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for i in range(5):
            assert contrast(colours["ink"], colours[f"g{i}"]) >= 4.5


def with_failure(folder: Path) -> Any:
    found = read_folder(folder)
    first = found.records[0]
    bad = Record.without_result(
        replace(first.case, seed=77), first.environment, Status.CRASHED, "<script>alert(1)</script> signal 11"
    )
    return replace(found, records=(*found.records, bad)), bad


def test_a_case_without_result_is_named_with_its_reason_and_has_no_number(folder: Path) -> None:
    found, bad = with_failure(folder)
    text = render(found)
    page = Page(text)
    assert "<script>alert" not in text
    assert f"1 of {len(found.records)} cases have no result" in text
    row = next(
        row
        for row in page.all("tr")
        if row.all("a") and row.all("a")[0].attributes["href"] == f"#{bad.case_id}" and "✕" in row.words()
    )
    assert not row.all("data")
    assert "crashed" in row.words()
    for name, made in texts(found).items():
        assert "signal 11" in made() or name.endswith(".svg")


def test_numbers_keep_three_digits() -> None:
    from pft_bench.report import words

    assert [words.digits(v) for v in (0.0, 3.1, 93.74, 337.2, 999.6, 1264.0, 0.000123)] == [
        "0", "3.10", "93.7", "337", "1,000", "1,260", "0.000123",
    ]  # fmt: skip
    assert words.seconds(0.9996e-3) == "1.00 ms"
    assert words.seconds(2.5e-5) == "25.0 µs"
    assert words.size(1536) == "1.50 KiB"
    assert words.tick("1.00 ms") == "1 ms"
    assert words.tick("100 ms") == "100 ms"


def test_axes_have_round_ticks_and_names_do_not_meet() -> None:
    from pft_bench.report.svg import Scale, spread_out, ticks

    assert ticks(0.8, 350, 6) == [1.0, 10.0, 100.0] or len(ticks(0.8, 350, 6)) <= 6
    assert ticks(2.0**20, 2.0**28, 6, 2) == [2.0**20, 2.0**22, 2.0**24, 2.0**26, 2.0**28]
    assert ticks(1.01, 1.02, 6) == [pytest.approx(math.sqrt(1.01 * 1.02))]
    placed = spread_out([50, 51, 52, 90], 15, 0, 100)
    assert all(b - a >= 15 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))
    scale = Scale(1, 100, 0, 10)
    assert [scale(v) for v in (1, 10, 100)] == [0, 5, 10]


def test_front_holds_what_nothing_beats(folder: Path) -> None:
    from pft_bench.report.series import Point, pareto_front

    record = read_folder(folder).records[0]
    points = [Point(record, x, y) for x, y in ((1, 9), (2, 5), (3, 6), (4, 1), (4, 2))]
    assert [(p.x, p.y) for p in pareto_front(points)] == [(1, 9), (2, 5), (4, 1)]


def test_the_front_takes_psnr_where_an_evaluation_measured_it() -> None:
    """The shipped model's evaluation: the page says what its table says, and no point of best PSNR is beaten."""
    from pft_bench.apps.quality.evaluate import read_rows
    from pft_bench.report.series import figures, pareto_front

    source = DATA / "2026-11-23_small_x2_held_out"
    folder = read_folder(source)
    rows = read_rows(source / "quality.jsonl")
    expected = {}
    for record in folder.records:
        own = [
            r.psnr_db
            for r in rows
            if (r.schedule, r.backend) == (record.case.options["sched"], record.case.backend)
        ]
        assert len(own) == 5, "five held-out photographs"
        expected[record.case_id] = sum(own) / len(own)
    (figure,) = (f for f in figures(folder.records, folder.roof, folder.quality_db) if f.kind == "pareto")
    assert {p.record.case_id: p.quality_db for p in figure.points} == pytest.approx(expected)
    best = max(figure.points, key=lambda p: p.quality_db or 0.0)
    assert best in pareto_front(figure.points)
    slowest = max(figure.points, key=lambda p: p.x)
    assert slowest not in pareto_front(figure.points)
    better = replace(slowest, quality_db=40.0)
    assert better in pareto_front([better if p is slowest else p for p in figure.points])
    text = render(folder)
    assert all(f", {value:.2f} dB" in text for value in expected.values())
    assert "Mean PSNR stands at each point" in text


def test_the_margin_is_the_one_of_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    from pft_bench.report import page

    monkeypatch.setattr(page, "RUN_MARGIN", 0.025)
    assert "beyond 2.5% or beyond what" in render(read_folder(committed("layer")))
