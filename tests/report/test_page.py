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
from matplotlib.text import Text
from recorded import DATA, Element, Page, committed, contrast, copy, raw_records

from pft_bench.harness.record import Record, Status
from pft_bench.report import marks, read_folder, words
from pft_bench.report.axis import Scale, limits, steps
from pft_bench.report.draw import NARROW, WIDE
from pft_bench.report.figures import figures
from pft_bench.report.page import anchor, headlines, render
from pft_bench.report.series import Point, pareto_front
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


def height(point: Element) -> float:
    """Where a point is drawn: matplotlib places a shape that many share, and writes one that few do point by point."""
    placed = point.all("use")
    if placed:
        return float(placed[0].attributes["y"])
    ys = [float(y) for _, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", point.all("path")[0].attributes["d"])]
    return (min(ys) + max(ys)) / 2


def test_every_point_is_where_its_record_says_and_leads_to_its_samples(page: Page, folder: Path) -> None:
    records = raw_records(folder)
    ids = {element.attributes["id"] for element in page.all("details") if "id" in element.attributes}
    count = 0
    for figure in page.all("figure"):
        key = figure.attributes["id"].removeprefix("figure-")
        wide, narrow = (svg.all("a") for svg in figure.all("svg"))
        assert [a.attributes for a in wide] == [a.attributes for a in narrow]
        assert wide
        for point in wide:
            record = records[point.attributes["data-case"]]
            assert point.attributes["href"] == f"#{record['case_id']}"
            assert record["case_id"] in ids
            assert point.all("title")[0].words().strip() == point.attributes["aria-label"]
            part = point.attributes.get("data-part")
            value = float(point.attributes["data-x" if key in ("stages", "speedup") else "data-y"])
            wanted = record["stages_s"][part] if part else expected(record, key)
            assert value == pytest.approx(wanted, rel=1e-12)
            count += 1
        if not key.startswith(("stages", "speedup")):
            ordered = sorted(wide, key=lambda p: float(p.attributes["data-y"]))
            heights = [height(point) for point in ordered]
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


def test_equal_figures_give_equal_bytes_whatever_the_user_set(draw_anew: Any, tmp_path: Path) -> None:
    """Drawn twice (unlike elsewhere in these tests: conftest.py), the second time by someone of other taste."""
    import matplotlib

    folder = read_folder(copy("layer", tmp_path / "run", 4))
    figure = figures(folder.records, folder.roof)[0]
    first = draw_anew(figure, folder.backends)
    with matplotlib.rc_context(
        {"font.size": 30, "axes.grid": False, "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        second = draw_anew(figure, folder.backends)
        written = [made.png(tmp_path).read_bytes() for made in (first, second)]
        assert first is not second
        assert first.svg(anchor) == second.svg(anchor)
    assert written[0] == written[1]
    assert 'style="fill:var(--c' in first.svg(anchor)
    assert not re.search(r"#[0-9a-f]{6}\b|\bdate\b|font-family", first.svg(anchor), flags=re.I)


def test_backends_differ_in_mark_and_dash_not_only_in_colour() -> None:
    names = ["cpu", "dense", "composed-sampled", "mine", "yours", "theirs"]
    kinds = [marks.look(name, names) for name in names]
    assert len(set(kinds)) == len(names)
    assert kinds[:2] == [marks.look("cpu", ["mine", "cpu"]), marks.look("dense", [])], (
        "fixed, whatever else is there"
    )
    assert len({str(marks.swatch(kind)) for kind in range(10)}) == 10
    assert len({marks.MARKS[kind] for kind in range(10)}) == len(set(marks.DASHES) - {"-"}) + 2 == 10


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
    assert [words.digits(v) for v in (0.0, 3.1, 93.74, 337.2, 999.6, 1264.0, 0.000123)] == [
        "0", "3.10", "93.7", "337", "1,000", "1,260", "0.000123",
    ]  # fmt: skip
    assert words.seconds(0.9996e-3) == "1.00 ms"
    assert words.seconds(2.5e-5) == "25.0 µs"
    assert words.size(1536) == "1.50 KiB"


def test_axes_have_round_ticks() -> None:
    assert steps(0.8, 350, 6) == [1.0, 10.0, 100.0] or len(steps(0.8, 350, 6)) <= 6
    assert steps(2.0**20, 2.0**28, 6, binary=True) == [2.0**20, 2.0**22, 2.0**24, 2.0**26, 2.0**28]
    assert steps(1.01, 1.02, 6) == [pytest.approx(math.sqrt(1.01 * 1.02))]
    assert steps(32.743, 32.791, 5, log=False) == pytest.approx([32.75, 32.76, 32.77, 32.78, 32.79])
    assert steps(9.5 * 2**20, 31 * 2**20, 5, log=False, binary=True) == [
        n * 2.0**20 for n in (10, 15, 20, 25, 30)
    ]
    scale = Scale(1, 100, 0, 10)
    assert [scale(v) for v in (1, 10, 100)] == [0, 5, 10]
    low, high = limits([3.0, 3.1], log=True)
    assert high / low > 1.5
    assert [words.tick(text) for text in ("1.00 ms", "100 ms", "1.50×", "2.00×", "1,260", "0.050")] == [
        "1 ms", "100 ms", "1.5×", "2×", "1,260", "0.05",
    ]  # fmt: skip


def test_front_holds_what_nothing_beats(folder: Path) -> None:
    record = read_folder(folder).records[0]
    points = [Point(record, x, y) for x, y in ((1, 9), (2, 5), (3, 6), (4, 1), (4, 2))]
    assert [(p.x, p.y) for p in pareto_front(points)] == [(1, 9), (2, 5), (4, 1)]


def test_the_front_takes_psnr_where_an_evaluation_measured_it() -> None:
    """The shipped model's evaluation: the page says what its table says, and no point of best PSNR is beaten."""
    from pft_bench.apps.quality.evaluate import read_rows

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

    monkeypatch.setattr(page, "_environment", page._environment.__wrapped__)  # not that of another test
    monkeypatch.setattr(page, "RUN_MARGIN", 0.025)
    assert "beyond 2.5% or beyond what" in render(read_folder(committed("layer")))


def test_cards_are_of_kernels_and_the_rest_stands_in_the_tables() -> None:
    """Whole model, one layer, memory, what is left in attention; no peer, no composition, no operator beside layers."""
    folder = read_folder(DATA / "2026-11-23_light_x4_64x64")
    page = Page(render(folder))
    cards = [card.all("h2")[0].words().split() for card in page.all("article")]
    assert [" ".join(words) for words in cards] == [
        "Whole model cpu", "One attention layer cpu", "Memory cpu", "Left in attention cpu",
    ]  # fmt: skip
    for backend in folder.backends:
        assert any(backend in row.words() for row in page.all("tr"))
    ops = read_folder(committed("op"))
    assert [(card["title"], card["backend"]) for card in headlines(ops.records)] == [
        ("sddmm", "cpu"),
        ("spmm", "cpu"),
    ]
    assert "sddmm" not in {card["title"] for card in headlines([*folder.records, *ops.records])}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_words_beside_crowded_points_do_not_meet(draw_anew: Any, width: int) -> None:
    record = read_folder(committed("layer")).records[0]
    points = tuple(
        Point(record, 1 + i / 1e3, 2**20 * (1 + i % 3 / 1e3), note=f"1024,256,{i}, 32.7{i} dB")
        for i in range(6)
    )
    plain = figures(read_folder(DATA / "2026-11-23_small_x2_held_out").records, lambda _: None)[0]
    drawing = draw_anew(replace(plain, series=(replace(plain.series[0], points=points),)), [], width)
    drawing.canvas.draw_without_rendering()  # which places annotations
    boxes = [Text.get_window_extent(text) for text in drawing.canvas.axes[0].texts]  # without their leaders
    assert len(boxes) == len(points)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert [(box.x0, box.x1) for box in boxes if box.x0 < 0 or box.x1 > width] == []
