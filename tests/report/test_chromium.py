"""The page in a browser, light and dark, on a desk and on a phone: no error, it sorts, filters, opens what a link leads
to; every point leads to its samples, and no text lies on another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from recorded import DATA, Page, contrast, luminance, raw_records

from pft_bench.report import read_folder
from pft_bench.report.page import render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(
    (path for path in map(shutil.which, (os.environ.get("PFT_CHROMIUM", ""), *BROWSERS)) if path), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here: install it, or name it in PFT_CHROMIUM"
)


WIDTHS = {"wide": 1280, "narrow": 390}
RUNS = {"layers": "2026-11-23_light_x4_64x64", "schedules": "2026-11-23_small_x2_held_out"}
"""Committed runs whose figures are crowded: six backends, and five schedules of nearly the same time."""

Found = dict[str, dict[str, Any]]


def visit(path: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's markup after its scripts have run, and what it wrote to the console."""
    assert BROWSER is not None
    ended = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={path.parent / 'profile'}",
            "--enable-logging=stderr",
            "--window-size=1280,900",
            "--virtual-time-budget=4000",
            *flags,
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.stdout.startswith("<!DOCTYPE html>"), ended.stderr[-2000:]
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seen")
    for name, run in RUNS.items():
        (made / f"{name}.html").write_text(render(read_folder(DATA / run)))
    return made


ACTIONS = """
<script>
const visible = (element) => element.getClientRects().length > 0;
const charts = () => [...document.querySelectorAll("svg.chart")].filter(visible);
const table = [...document.querySelectorAll("#verdicts table")].pop();
const latency = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.includes("latency"));
const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[latency].querySelector("data").value));

const sorting = () => {
  const button = table.tHead.rows[0].cells[latency].querySelector("button");
  button.click();
  const up = column();
  button.click();
  return { up, down: column(), aria: table.tHead.rows[0].cells[latency].getAttribute("aria-sort") };
};
const filtering = () => {
  const filter = document.querySelector(".filter input");
  const of = (words) => {
    filter.value = words;
    filter.dispatchEvent(new Event("input"));
    return [...document.querySelectorAll("#verdicts tbody tr")].filter((row) => !row.hidden).length;
  };
  const shown = of("CPU Faster");
  const count = document.querySelector(".filter output").textContent;
  of("");
  return { shown, count };
};
const points = () => charts().flatMap((chart) => [...chart.querySelectorAll("a.point")]).map((point) => {
  const box = point.getBoundingClientRect();
  const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  const target = document.getElementById(point.getAttribute("href").slice(1));
  point.focus();
  return {
    case: point.dataset.case,
    clickable: top !== null && top.closest("a.point") !== null,
    samples: target !== null && target.matches("details.raw") && target.querySelector("pre") !== null,
    focused: document.activeElement === point, title: point.querySelector("title").textContent,
  };
});
const meeting = () => charts().flatMap((chart) => {
  const frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const found = texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([text]) => `${text} is cut off`);
  texts.forEach(([text, a], i) => texts.slice(0, i).forEach(([other, b]) => {
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
      found.push(`${text} on ${other}`);
  }));
  return found;
});
const looks = () => ({
  ground: getComputedStyle(document.body).backgroundColor,
  texts: [...new Set(charts().flatMap((chart) => [...chart.querySelectorAll("text")])
    .map((text) => getComputedStyle(text).fill))],
  marks: [...new Set(charts().flatMap((chart) => [...chart.querySelectorAll("path[style*=stroke]")])
    .map((path) => getComputedStyle(path).stroke))],
});
const follow = () => {
  charts()[0].querySelector("a.point").dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  return location.hash;
};
addEventListener("load", () => {
  const found = {
    width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth,
    clipped: [...document.querySelectorAll("#verdicts .scroll")]
      .filter((region) => region.scrollWidth > region.clientWidth + 1).length,
    sorting: sorting(), filtering: filtering(), points: points(), meeting: meeting(), looks: looks(), hash: follow(),
    charts: charts().map((chart) => chart.parentElement.className),
  };
  setTimeout(() => {
    found.open = [...document.querySelectorAll("details.raw[open]")].map((details) => details.id);
    parent.postMessage([location.pathname.split("/").pop(), innerWidth, found], "*");
  }, 200);
});
</script>
"""

FRAMES = """<!DOCTYPE html>
<html><head><title>frames</title><link rel="icon" href="data:,"></head><body><script>
addEventListener("message", ({ data: [name, width, found] }) =>
  document.body.setAttribute(`data-${name}-${width}`, JSON.stringify(found)));
</script>%s</body></html>
"""


def act(folder: Path, *flags: str) -> Found:
    """What the pages do and show in frames of both widths (headless Chromium's windows are 500 pixels or more)."""
    frames = ""
    for name in RUNS:
        text = (folder / f"{name}.html").read_text().replace("</body>", ACTIONS + "</body>")
        (folder / f"acted-{name}.html").write_text(text)
        for width in WIDTHS.values():
            frames += (
                f'<iframe src="acted-{name}.html" width="{width}" height="16000" style="border: 0"></iframe>'
            )
    path = folder / "frames.html"
    path.write_text(FRAMES.replace("%s", frames))
    seen, console = visit(path, *flags)
    assert not console
    found = dict(re.findall(r'data-acted-([\w.-]+)="([^"]*)"', seen))
    return {
        f"{name} {width}": json.loads(unescape(found[f"{name}.html-{pixels}"]))
        for name in RUNS
        for width, pixels in WIDTHS.items()
    }


@pytest.fixture(scope="module")
def light(folder: Path) -> Found:
    return act(folder)


@pytest.fixture(scope="module")
def dark(folder: Path) -> Found:
    return act(folder, "--blink-settings=preferredColorScheme=0")


every_frame = pytest.mark.parametrize("width", WIDTHS)
every_run = pytest.mark.parametrize("run", RUNS)
both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"])


def test_page_has_no_console_message_and_shows_the_records(folder: Path) -> None:
    text, console = visit(folder / "layers.html")
    assert not console
    page = Page(text.split("<!DOCTYPE html>", 1)[1])
    records = raw_records(DATA / RUNS["layers"])
    medians = {
        element.attributes["data-case"]: float(element.attributes["value"])
        for element in page.all("data")
        if element.attributes.get("data-field") == "median_s"
    }
    assert medians == {name: record["derived"]["median_s"] for name, record in records.items()}
    points = {a.attributes["data-case"] for svg in page.all("svg") for a in svg.all("a")}
    assert points == set(records)


def test_an_error_in_the_page_would_be_seen(folder: Path) -> None:
    path = folder / "broken.html"
    path.write_text(
        (folder / "layers.html").read_text().replace('"use strict";', '"use strict"; nothing.here();')
    )
    _, console = visit(path)
    assert any("nothing is not defined" in line for line in console)


@every_frame
@every_run
def test_tables_sort_and_filter(light: Found, run: str, width: str) -> None:
    records, found = raw_records(DATA / RUNS[run]), light[f"{run} {width}"]
    up, down = found["sorting"]["up"], found["sorting"]["down"]
    assert len(up) > 4
    assert (up, down) == (sorted(up), sorted(up, reverse=True))
    assert found["sorting"]["aria"] == "descending"
    faster = sum(
        r["case"]["backend"] == "cpu" and r["derived"]["verdict"] == "FASTER" for r in records.values()
    )
    assert found["filtering"] == {"shown": faster, "count": f"{faster} of {len(records)} rows"}


@every_frame
@every_run
def test_page_fits_its_window(light: Found, run: str, width: str) -> None:
    found = light[f"{run} {width}"]
    assert (found["width"], found["overflow"] <= 0) == (WIDTHS[width], True)
    assert set(found["charts"]) == {width}
    assert found["clipped"] == 0


@every_frame
@every_run
@both_schemes
def test_every_point_leads_to_its_samples(
    scheme: str, run: str, width: str, request: pytest.FixtureRequest
) -> None:
    found, records = request.getfixturevalue(scheme)[f"{run} {width}"], raw_records(DATA / RUNS[run])
    assert {point["case"] for point in found["points"]} == set(records)
    for point in found["points"]:
        assert point["clickable"], point
        assert point["samples"], point
        assert point["focused"], point
        assert records[point["case"]]["case"]["backend"] in point["title"]
    first = found["points"][0]["case"]
    assert (found["hash"], found["open"]) == (f"#{first}", [first])


@every_frame
@every_run
@both_schemes
def test_no_text_of_a_figure_lies_on_another_or_is_cut_off(
    scheme: str, run: str, width: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(scheme)[f"{run} {width}"]["meeting"] == []


def colour(text: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", text)[:3])


def test_figures_are_light_or_dark_as_their_reader_is(light: Found, dark: Found) -> None:
    for frame in light:
        grounds = []
        for scheme in (light, dark):
            looks = scheme[frame]["looks"]
            grounds.append(luminance(colour(looks["ground"])))
            assert len(looks["texts"]) > 1
            assert len(looks["marks"]) > 2
            for text in looks["texts"]:
                assert contrast(colour(text), colour(looks["ground"])) >= 4.5, text
        assert grounds[0] > 0.8
        assert grounds[1] < 0.05
        assert not set(light[frame]["looks"]["marks"]) & set(dark[frame]["looks"]["marks"])
