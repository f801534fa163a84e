"""Writes all files of a report into its run folder, and says which text each of them must have."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from ..common.drafts import draft
from ..common.text import plain
from ..harness.record import Record, RunFolder
from .charts import WIDE, draw
from .markdown import render_markdown
from .page import anchor, generator, render
from .plots import write_plots
from .series import Figure, figures
from .svg import tag
from .tables import write_summary

PAGE, TEXT, SUMMARY = "report.html", "report.md", "summary.csv"


def in_page(record: Record) -> str:
    """Where a figure that stands alone sends the reader for the samples of a point."""
    return f"{PAGE}{anchor(record)}"


def svg_file(figure: Figure, names: list[str]) -> str:
    """A figure as an SVG file of its own, light or dark as its reader is."""
    style = (resources.files(__package__) / "chart.css").read_text(encoding="utf-8")
    drawn = str(draw(figure, WIDE, names, in_page))
    sans = "svg { background: var(--paper); font-family: system-ui, sans-serif; }"
    head = tag("style", Markup(f"\n{style}{sans}\n")) + Markup(f"<!-- {generator()} -->")
    opened = drawn.replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE[0]:g}" height="{WIDE[1]:g}" ', 1
    )
    end = opened.index(">") + 1
    return plain(f"{opened[:end]}{head}{opened[end:]}\n", lines=True)


def texts(folder: RunFolder) -> dict[str, Callable[[], str]]:
    """File name -> what it must hold, for every text that a report consists of. Pure: equal records, equal texts."""
    names = list(dict.fromkeys(record.case.backend for record in folder.records))
    made = figures(folder.records, folder.roof, folder.quality_db)
    found: dict[str, Callable[[], str]] = {PAGE: lambda: render(folder)}
    found[TEXT] = lambda: render_markdown(folder, [f"{figure.key}.png" for figure in made])
    for figure in made:
        found[f"{figure.key}.svg"] = lambda figure=figure: svg_file(figure, names)  # type: ignore[misc]
    return found


def write_report(folder: RunFolder) -> list[Path]:
    """Write page, Markdown, CSV and figures (SVG and PNG) beside the records; returns the files, the page first."""
    written = []
    for name, text in texts(folder).items():
        path = folder.path / name
        with draft(path) as made:
            made.write_text(text(), encoding="utf-8")
        written.append(path)
    write_summary(folder.records, folder.path / SUMMARY)
    roof = folder.roof(folder.records[-1])
    return [
        *written,
        folder.path / SUMMARY,
        *write_plots(folder.records, folder.path, roof, folder.quality_db),
    ]
