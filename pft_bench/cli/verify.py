"""`pft-bench verify`: every derived number of a run folder, computed again from its raw samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..insight.counts import formula_counts, recount
from ..measure.environment import environment
from ..report.verify import verify_folder


def verify(
    folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="DIR")],
    count: Annotated[
        bool, typer.Option("--recount/--no-recount", help="Count FLOPs again; takes seconds for each model.")
    ] = True,
) -> None:
    """Recompute medians, intervals, verdicts, operations and rates, and make the report's texts again.

    Pictures (PNG) are not read. Exit code 1 if any number or text is not what the raw samples give.
    """
    if not folder.is_dir():
        raise ValueError(f"DIR must be a run folder, got {folder}")
    console = Console(highlight=False, soft_wrap=True)
    found = verify_folder(
        folder,
        formula=formula_counts,
        recount=recount if count else None,
        processor=environment()["cpu"],
    )
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for mismatch in found.mismatches:
        console.print(f"WRONG: {mismatch}", markup=False, style="bold red")
    rounded = f", {found.rounded} of them but for the last place (another processor)" if found.rounded else ""
    console.print(f"{found.values} numbers recomputed{rounded}; {', '.join(found.files) or 'no file'} read")
    if found.mismatches:
        console.print(f"{len(found.mismatches)} do not agree with the raw samples", style="bold red")
        raise typer.Exit(1)
    console.print("everything agrees with the raw samples", style="green")
