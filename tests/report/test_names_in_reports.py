"""A report shows names that look like markup of any kind as they are: nothing of them acts."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import Page, copy

from pft_bench.harness.record import Record
from pft_bench.report import canvas, read_folder, write_report
from pft_bench.report.verify import verify_folder

EVIL = "p\"><img src=x onerror=alert(1)></script>&amp; $a$ |b| `c` [d](e) *f* _g_, 'h'\x1b[31m\u202e\udce9/"
SHOWN = EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").replace("\udce9", "\\xe9")
ACTIVE = {"img", "script", "iframe", "object", "embed", "base", "form", "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run whose backend `cpu` is a plug-in of a dreadful name, written as a report."""
    folder = copy("threads", tmp_path_factory.mktemp("evil"), records=40)
    lines = (folder / "records.jsonl").read_text().splitlines()
    made = []
    for line in lines:
        record = Record.from_json(line)
        case = replace(record.case, backend=EVIL if record.case.backend == "cpu" else record.case.backend)
        if case.preset is not None:
            case = replace(case, preset=f"<b>{case.preset}", options={**case.options, "weights": EVIL})
        made.append(replace(record, case=case).to_json() + "\n")
    (folder / "records.jsonl").write_text("".join(made))
    environments = json.loads((folder / "environment.json").read_text())
    for environment in environments.values():
        environment["host"] = {"command": ["pft-bench", "run", "--plugin", EVIL]}
        environment.pop("seal", None)
    (folder / "environment.json").write_text(json.dumps(environments))
    write_report(read_folder(folder))
    return folder


def test_the_page(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    tags = [tag for tag in ACTIVE if tag != "script" for _ in page.root.all(tag)]
    assert tags == []
    assert len(page.root.all("script")) == 1
    assert EVIL.split("\x1b", maxsplit=1)[0] in page.root.words()
    assert not {"\x1b", "\u202e"} & set(text)
    handlers = [
        name for element in _all(page.root) for name in element.attributes if name.lower().startswith("on")
    ]
    assert handlers == []


def _all(element):  # type: ignore[no-untyped-def]
    yield element
    for child in element.children:
        yield from _all(child)


def test_links_of_the_page_lead_to_its_samples(folder: Path) -> None:
    from urllib.parse import unquote

    page = Page((folder / "report.html").read_text())
    ids = {element.attributes["id"] for element in _all(page.root) if "id" in element.attributes}
    links = [e.attributes["href"] for e in page.root.all("a") if e.attributes.get("href", "").startswith("#")]
    assert links
    assert {unquote(link[1:]) for link in links} <= {name.replace("\n", "") for name in ids}


def test_the_figures_are_sound_xml(folder: Path) -> None:
    figures = sorted(folder.glob("*.svg"))
    assert figures
    for path in figures:
        root = ElementTree.fromstring(path.read_text())
        assert not any(element.tag.endswith(("img", "script", "foreignObject")) for element in root.iter())
    assert all(path.name.isascii() and " " not in path.name for path in folder.iterdir())


def test_the_markdown(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for own in ("<!-- pft-bench report", "<pre><code>", "</code></pre>"):
        assert own in text
        text = text.replace(own, "")
    assert "<" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"\[d\](e)" in text
    for block in text.split("\n\n"):
        rows = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_the_summary(folder: Path) -> None:
    with (folder / "summary.csv").open(newline="") as file:
        names = {row["backend"] for row in csv.DictReader(file)}
    assert SHOWN in names


def test_it_verifies(folder: Path) -> None:
    found = verify_folder(folder)
    assert [mismatch for mismatch in found.mismatches if "environment" not in str(mismatch)] == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_write_out_what_their_font_lacks(tmp_path: Path, suffix: str) -> None:
    """It would be a box, the same for every character, and a warning with a path of ours in it."""
    sheet = canvas.blank(200, 100)
    sheet.text(0, 0.5, "caf\u00e9\n\u65e5 \U0001f469\u200d\U0001f680 \u0939\u093f", weight="bold")
    canvas.save(sheet, tmp_path / f"a{suffix}")
    shown = sheet.texts[0].get_text()
    assert shown.startswith("caf\u00e9\n\\u65e5 \\U0001f469")
    assert "\u0939" not in shown
