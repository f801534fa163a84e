"""`pft-bench history`: each case over the committed runs, with the commits where it changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..compare.history import Point, Series, run_folders
from ..compare.history import history as series_of
from ..compare.verdicts import MARGIN
from ..drafts import draft, require_writable
from ..terminal import Console, Table
from ..text import in_figure
from . import options


def history(
    root: Annotated[Path, options.argument("DIR", help="Folder with run folders below it.")] = Path(
        "reports/data"
    ),
    case: Annotated[str, typer.Option(help="Only cases whose title or id contains this.")] = "",
    margin: Annotated[float, typer.Option(help="Practical equivalence.")] = MARGIN,
    plot: Annotated[Path | None, options.file(help="Also draw the series to this PNG or SVG.")] = None,
) -> None:
    """Show each case's time over the baseline's, run by run, and the verdict of each step against the one before.

    Yardsticks, such as compositions of PyTorch's own operators, are shown and not judged.
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
    table = Table(title=f"{len(found)} cases below {root}")
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
            f"{yardsticks} cases are yardsticks (PyTorch's own operators and the like), which no commit is to make "
            "faster: not judged",
        )
    if plot is not None:
        draw(found, plot)
        console.print(f"written to {plot}")


def step(point: Point) -> str:
    """What happened between the run before and this one."""
    if point.incomparable:
        return "not comparable: " + "; ".join(point.incomparable)
    if point.evidence is None:
        return ""
    found = point.evidence
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    word = "not judged:" if point.change is None else point.change.value
    return f"{word} {found.ratio:.3f}{interval}"


def draw(found: list[Series], path: Path) -> None:
    """One line a case: time over the baseline's, run by run; a ring marks a change."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(8, max(4.5, 1.5 + 0.17 * len(found))), layout="constrained"
    )  # the legend's lines
    axes = figure.subplots()
    for item in found:
        dates = [point.created[:16].replace("T", " ") for point in item.points]
        (line,) = axes.plot(
            dates, [point.relative for point in item.points], marker=".", label=in_figure(item.title)
        )
        for point in item.changes:
            at = point.created[:16].replace("T", " ")
            axes.plot([at], [point.relative], "o", ms=10, mfc="none", color=line.get_color())
    axes.set_yscale("log")
    axes.set_ylabel("time / baseline's time")
    axes.tick_params(axis="x", rotation=30)
    axes.legend(fontsize="x-small")
    with draft(path) as made:
        figure.savefig(made, dpi=150)
