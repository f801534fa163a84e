"""The page in a browser: no error, it sorts, filters, opens what a link leads to, and fits a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from recorded import Page, copy, raw_records

from pft_bench.report import read_folder
from pft_bench.report.page import render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(
    (path for path in map(shutil.which, (os.environ.get("PFT_CHROMIUM", ""), *BROWSERS)) if path), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here: install it, or name it in PFT_CHROMIUM"
)


def visit(path: Path, width: int = 1280, fragment: str = "") -> tuple[str, list[str]]:
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
            f"--window-size={width},900",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"{path.as_uri()}{fragment}",
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
    made = copy("layer", tmp_path_factory.mktemp("seen") / "run")
    (made / "report.html").write_text(render(read_folder(made)))
    return made


ACTIONS = """
<script>
(() => {
  const table = document.querySelectorAll("#verdicts table")[1];
  const latency = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.includes("latency"));
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[latency].querySelector("data").value));
  const button = table.tHead.rows[0].cells[latency].querySelector("button");
  button.click();
  const up = column();
  button.click();
  const down = column();
  const filter = document.querySelector(".filter input");
  filter.value = "CPU Faster";
  filter.dispatchEvent(new Event("input"));
  const shown = [...document.querySelectorAll("#verdicts tbody tr")].filter((row) => !row.hidden).length;
  const result = {
    up: up.every((v, i) => i === 0 || up[i - 1] <= v), down: down.every((v, i) => i === 0 || down[i - 1] >= v),
    sorted: latency >= 0 && up.length > 4, aria: table.tHead.rows[0].cells[latency].getAttribute("aria-sort"), shown,
    count: document.querySelector(".filter output").textContent,
    open: [...document.querySelectorAll("details.raw[open]")].map((d) => d.id).join(),
    fits: document.documentElement.scrollWidth <= window.innerWidth, width: window.innerWidth,
    narrow: getComputedStyle(document.querySelector(".narrow")).display,
    clipped: [...document.querySelectorAll("#verdicts .scroll")]
      .filter((region) => region.scrollWidth > region.clientWidth + 1).length,
  };
  for (const [key, value] of Object.entries(result)) document.body.setAttribute(`data-found-${key}`, value);
})();
</script>
"""


def act(folder: Path, width: int, fragment: str = "") -> dict[str, str]:
    path = folder / f"acted{width}.html"
    path.write_text((folder / "report.html").read_text().replace("</body>", ACTIONS + "</body>"))
    text, console = visit(path, width, fragment)
    assert not console
    return dict(re.findall(r'data-found-(\w+)="([^"]*)"', text))


def test_page_has_no_console_message_and_shows_the_records(folder: Path) -> None:
    text, console = visit(folder / "report.html")
    assert not console
    page = Page(text.split("<!DOCTYPE html>", 1)[1])
    records = raw_records(folder)
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
        (folder / "report.html").read_text().replace('"use strict";', '"use strict"; nothing.here();')
    )
    _, console = visit(path)
    assert any("nothing is not defined" in line for line in console)


def test_tables_sort_and_filter_and_links_open_their_samples(folder: Path) -> None:
    records = raw_records(folder)
    case = next(iter(records))
    found = act(folder, 1280, f"#{case}")
    assert (found["sorted"], found["up"], found["down"], found["aria"]) == (
        "true",
        "true",
        "true",
        "descending",
    )
    faster = sum(
        r["case"]["backend"] == "cpu" and r["derived"]["verdict"] == "FASTER" for r in records.values()
    )
    assert found["shown"] == str(faster)
    assert found["count"] == f"{faster} of {len(records)} rows"
    assert found["open"] == case
    assert (found["fits"], found["narrow"]) == ("true", "none")


def test_page_fits_a_phone(folder: Path) -> None:
    found = act(folder, 500)  # headless Chromium's windows are no narrower
    assert int(found["width"]) <= 500
    assert (found["fits"], found["narrow"], found["clipped"]) == ("true", "block", "0")
