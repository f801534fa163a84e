"""`pft-bench history`: each case over the committed runs, with the commits where it changed."""

from __future__ import annotations

from os.path import relpath
from pathlib import Path
from typing import Annotated

import typer

from ..common.drafts import draft, require_writable
from ..common.terminal import Console, Table
from ..common.text import counted
from ..harness.measure.limits import MARGIN
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.compare.history import HistoryPoint, HistorySeries, run_folders
    from ..harness.compare.history import history as series_of
    from ..harness.record import RECORDS, Record
    from ..report import series, words
    from ..report.canvas import save
    from ..report.draw import draw
    from ..report.write import svg_file


def history(
    root: Annotated[Path, options.argument("DIR", help="Folder with run folders below it.")] = Path(
        "reports/data"
    ),
    case: Annotated[str, typer.Option(help="Only cases whose title or id contains this.")] = "",
    margin: Annotated[float, typer.Option(help="Practical equivalence.")] = MARGIN,
    plot: Annotated[Path | None, options.file(help="Also draw the series to this PNG or SVG.")] = None,
) -> None:
    """Show each case's time relative to the baseline, run by run, and the verdict of each run against the one before.

    Yardsticks, such as compositions of PyTorch's own operators, are shown but not judged.
    """
    if not root.is_dir():
        raise ValueError(f"history needs a folder with run folders, got {root}")
    found = [
        item for item in series_of(run_folders(root), margin) if case in item.title or case in item.case_id
    ]
    if not found:
        raise ValueError(
            f"no case with a time next to a baseline below {root}" + (f" matches {case!r}" if case else "")
        )
    if plot is not None:
        require_writable(plot)
    console = Console(width=max(Console().width, 110))
    table = Table(title=f"{counted(len(found), 'case')} below {root}")
    for name in ("case", "date", "commit", "median", "/ baseline", "against the run before"):
        table.add_column(name, justify="right" if name in ("median", "/ baseline") else "left")
    for item in found:
        for number, point in enumerate(item.points):
            table.add_row(
                "" if number else item.title,
                point.created[:10],
                point.commit,
                f"{point.median_s * 1e3:.3g} ms",
                f"{point.relative:.4g}",
                step(point),
            )
    console.print(table)
    changed = [(item, point) for item in found for point in item.changes]
    for item, point in changed:
        console.print(f"{item.title}: {step(point)} at {point.commit} ({point.folder})")
    steps = sum(point.change is not None for item in found for point in item.points)
    console.print(
        f"{len(changed)} of {steps} comparable steps changed; verdicts are corrected for all of them (Holm)",
    )
    yardsticks = sum(item.yardstick for item in found)
    if yardsticks:
        console.print(
            f"{yardsticks} cases are yardsticks (PyTorch's own operators and the like), which no commit is meant "
            "to make faster: not judged",
        )
    if plot is not None:
        draw_history(found, plot)
        console.print(f"written to {plot}")


def step(point: HistoryPoint) -> str:
    """What happened between the run before and this one."""
    if point.incomparable:
        return "not comparable: " + "; ".join(point.incomparable)
    if point.evidence is None:
        return ""
    found = point.evidence
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    word = "not judged:" if point.change is None else point.change.value
    return f"{word} {found.ratio:.3f}{interval}"


def draw_history(found: list[HistorySeries], path: Path) -> None:
    """Draw the cases of several runs to a file, all if there are none; in SVG a point leads to its records."""
    folders = {id(point.record): point.folder for item in found for point in item.points}

    def records(record: Record) -> str:
        return relpath(folders[id(record)] / RECORDS, path.parent)

    repeated = [item for item in found if len(item.points) > 1]
    drawing = draw(figure_of(repeated or found), [], 900)
    if path.suffix.lower() == ".svg":
        with draft(path) as made:
            made.write_text(svg_file(drawing, records), encoding="utf-8")
    else:
        save(drawing.canvas, path)


def figure_of(found: list[HistorySeries]) -> series.Figure:
    """One line a case: time over the baseline's, run by run; a change is named where it shows."""
    dates = sorted({point.created[:16].replace("T", " ") for item in found for point in item.points})
    lines = []
    for item in found:
        points = [
            series.Point(
                point.record,
                dates.index(point.created[:16].replace("T", " ")),
                point.relative,
                note=step(point) if point in item.changes else "",
            )
            for point in item.points
        ]
        lines.append(series.Series(item.title, tuple(points)))
    return series.Figure(
        "history",
        "curves",
        "Cases over time",
        "Time over the baseline's in the same rounds, run by run.",
        "run",
        "time / baseline's time",
        tuple(lines),
        lambda place: dates[round(place)],
        words.digits,
        x_log=False,
    )
