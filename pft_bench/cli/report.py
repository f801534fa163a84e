"""`pft-bench report`: a run folder as one page, with its figures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..common.terminal import Console
from ..common.text import counted
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.record import remember_files
    from ..report import read_folder, write_report


def report(
    folder: Annotated[Path, options.argument("DIR", help="Run folder, as `pft-bench run` wrote it.")],
) -> None:
    """Write report.html (one file, nothing else needed), report.md, summary.csv and the figures as SVG and PNG.

    Every number comes from the folder's records; `pft-bench verify DIR` recomputes them all.
    """
    console = Console()
    found = read_folder(folder)
    if found.unfinished:
        console.print(found.unfinished, style="bold yellow")
    for line in found.notes:
        console.print(f"left out: {line}")
    written = write_report(found)
    remember_files(folder, [path.name for path in written])
    console.print(f"{counted(len(found.records), 'record')} -> {written[0]}")
    console.print(f"beside it: {', '.join(path.name for path in written[1:])}")
