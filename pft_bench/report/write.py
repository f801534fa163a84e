"""Writes all files of a report into its run folder, and says which text each of them must have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from ..common.drafts import draft
from ..common.text import plain
from ..harness.record import Record, RunFolder
from .canvas import style_sheet
from .draw import Drawing, DrawnFigure, Href, pictures
from .markdown import render_markdown
from .page import anchor, generator, render
from .tables import write_summary

PAGE, TEXT, SUMMARY = "report.html", "report.md", "summary.csv"


def in_page(record: Record) -> str:
    """Where a figure that stands alone sends the reader for the samples of a point."""
    return f"{PAGE}{anchor(record)}"


def svg_file(drawing: Drawing, href: Href = in_page) -> str:
    """A figure as an SVG file of its own, light or dark as its reader is; `href` is where its points lead."""
    sans = "svg { background: var(--paper); font-family: system-ui, sans-serif; }"
    head = Markup("<style>\n{}{}\n</style><!-- {} -->").format(
        Markup(style_sheet()), Markup(sans), generator()
    )
    width, height = f"{drawing.width:g}", f"{drawing.height:g}"
    drawn = drawing.svg(href, xmlns="http://www.w3.org/2000/svg", width=width, height=height)
    end = drawn.index(">") + 1
    return plain(f"{drawn[:end]}{head}{drawn[end:]}\n", lines=True)


def write_plots(folder: RunFolder) -> list[Path]:
    """Write every figure that the records allow as a PNG; returns the files."""
    return [picture.wide.png(folder.path) for picture in pictures(folder)]


def texts(folder: RunFolder, drawn: Sequence[DrawnFigure] | None = None) -> dict[str, Callable[[], str]]:
    """File name -> what it must hold, for every text that a report consists of. Pure: equal records, equal texts."""
    drawn = pictures(folder) if drawn is None else drawn
    names = [f"{picture.figure.key}.png" for picture in drawn]
    found: dict[str, Callable[[], str]] = {
        PAGE: lambda: render(folder, drawn),
        TEXT: lambda: render_markdown(folder, names),
    }
    for picture in drawn:
        found[f"{picture.figure.key}.svg"] = lambda picture=picture: svg_file(picture.wide)  # type: ignore[misc]
    return found


def write_report(folder: RunFolder) -> list[Path]:
    """Write page, Markdown, CSV and figures (SVG and PNG) beside the records; returns the files, the page first."""
    written, drawn = [], pictures(folder)
    for name, text in texts(folder, drawn).items():
        path = folder.path / name
        with draft(path) as made:
            made.write_text(text(), encoding="utf-8")
        written.append(path)
    write_summary(folder.records, folder.path / SUMMARY)
    return [*written, folder.path / SUMMARY, *(picture.wide.png(folder.path) for picture in drawn)]
