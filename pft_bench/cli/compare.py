"""`pft-bench compare`: is B faster than A? Two backends, two dtypes, two commits, or two recorded runs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.container import respect_quota
from ..common.drafts import require_writable
from ..common.terminal import Console, Table, Text, line
from ..harness.measure.limits import MARGIN
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.compare.folders import compare_folders
    from ..harness.compare.table import Row, VerdictTable
    from ..harness.measure.disturbance import busy_machine
    from ..harness.measure.verdicts import LOOKS, Verdict, exit_code

STYLES = {"FASTER": "green", "SLOWER": "red", "SAME": "", "UNDECIDED": "yellow"}

LIVE = (
    *(
        "sched",
        "preset",
        "scale",
        "lr",
        "level",
        "mode",
        "device",
        "dtype",
        "dtypes",
        "threads",
        "seed",
        "budget",
    ),
)
"""Parameters that two recorded runs have no use for."""


def compare(
    context: typer.Context,
    *,
    a: Annotated[
        Path | None, options.argument("A", help="Run folder: the one before.", show_default=False)
    ] = None,
    b: Annotated[
        Path | None, options.argument("B", help="Run folder: the one after.", show_default=False)
    ] = None,
    backends: Annotated[
        str | None, typer.Option(help="A,B: measure backend B against backend A now. With --baseline: which.")
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(help="A,B: measure --backends in dtype B against dtype A now, on a CPU: cpu."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Measure this code against that commit, built beside it."),
    ] = None,
    sched: options.Schedules = ["1024,256,128"],  # noqa: B006 - typer reads it, nobody writes it
    shapes: options.Shapes,
    level: Annotated[list[str], typer.Option(help="op, layer or model. Repeatable.")] = ["layer"],  # noqa: B006
    mode: options.Mode = "infer",
    machine: options.Machine,
    seed: options.Seed = 0,
    margin: Annotated[float, typer.Option(help="Relative differences below this count as none.")] = MARGIN,
    budget: Annotated[
        float, typer.Option(help="Seconds that one case may take, if twelve rounds fit.")
    ] = 60.0,
    force: Annotated[
        bool, typer.Option(help="Recorded runs: compare even if devices, methods or clocks differ.")
    ] = False,
    ci: Annotated[
        bool, typer.Option("--ci", help="Exit with 0 unless a case is SLOWER (4) or has no result (1).")
    ] = False,
    out: Annotated[
        Path | None,
        options.file(help="Write the comparison with its samples as JSON, and again after each case."),
    ] = None,
) -> None:
    """Compare two backends, two dtypes or two commits, interleaved, or two recorded runs.

    Exit code 0: all SAME; 3: some FASTER; 5: some UNDECIDED; 4: some SLOWER; 1: a case has no result; 2: the command
    cannot be carried out. If several apply, the first of 1, 4, 5, 3.
    """
    if not 0 < margin < 1:
        raise ValueError(f"--margin must be a fraction between 0 and 1, got {margin}")
    if not budget > 0:
        raise ValueError(f"--budget must be positive seconds, got {budget}")
    if "threads" in level:
        raise ValueError(
            "compare takes levels op, layer and model, got threads: `run --level threads` compares them"
        )
    recorded = a is not None or b is not None
    live = backends is not None or dtypes is not None or baseline is not None
    if live == recorded or (recorded and b is None):
        raise ValueError(
            "compare takes two run folders, or --backends A,B, or --dtypes A,B, or --baseline REV"
        )
    if dtypes is not None:
        options.refuse(context, ("dtype", "baseline"), "has no place beside the two of --dtypes")
    if recorded:
        options.refuse(context, LIVE, "is of measuring now; two recorded runs are compared as they are")
    else:
        options.refuse(context, ("force",), "is of two recorded runs, got none")
    options.refuse_what_is_read(out, *(path for run in (a, b) if run is not None for path in run.glob("*")))
    if out is not None:
        require_writable(out)
    console = Console(width=max(Console().width, 100))
    if a is not None and b is not None:
        table = compare_folders(a, b, margin=margin, force=force)
    else:
        given: dict[str, Any] = {
            "schedules": sched,
            **shapes.settings(),
            **machine.settings(),
            "levels": level,
            "mode": mode,
            "seed": seed,
        }
        with keeping(out, console) as keep:
            table = _live(given, backends, dtypes, baseline, margin, budget, console, keep)
    show(table, console)
    if out is not None:
        table.write(out)
        console.print(f"written to {out}")
    code = exit_code(table.judged, table.without_result)
    if code and not (ci and code in (Verdict.FASTER.exit_code, Verdict.UNDECIDED.exit_code)):
        raise typer.Exit(code)


@contextmanager
def keeping(out: Path | None, console: Console) -> Iterator[Callable[[VerdictTable], None]]:
    """Takes what is known so far: it is in `out`, and on the screen where something ends the block early."""
    known: list[VerdictTable] = []

    def keep(table: VerdictTable) -> None:
        known[:] = [table]
        if out is not None:
            table.write(out)

    try:
        yield keep
    except BaseException:
        if known:
            show(known[0], console)
        raise


def _live(
    given: dict[str, Any],
    backends: str | None,
    dtypes: str | None,
    baseline: str | None,
    margin: float,
    budget_s: float,
    console: Console,
    keep: Callable[[VerdictTable], None],
) -> VerdictTable:
    from ..harness.cases import Settings
    from ..harness.compare.live import Terms, compare_backends, compare_dtypes, compare_versions
    from ..harness.compare.remote import Version
    from ..harness.compare.revision import build

    respect_quota()
    names, kinds = _names(backends), _names(dtypes)
    busy = busy_machine() if given["device"] != "cuda" else None
    if busy is not None:
        console.print(busy, style="yellow")
    with console.waiting("starting") as say:

        def on_round(title: str, done: int) -> None:
            goal = next(look for look in LOOKS if done < look)
            say(f"{title}: round {done + 1} of {goal}")

        terms = Terms(margin, budget_s, on_round, keep)

        if dtypes is not None:
            if len(kinds) != 2 or kinds[0] == kinds[1]:
                raise ValueError(f"--dtypes must be two dtypes, A,B, got {dtypes!r}")
            if len(names) > 1:
                raise ValueError(f"--backends must be one name beside --dtypes, got {backends!r}")
            before, after = (Settings.make(**{**given, "dtype": kind}, backends=names) for kind in kinds)
            shared = [name for name in before.backends if name in after.backends]
            return compare_dtypes(before, after, shared[-1], terms)
        if baseline is None:
            if len(names) != 2 or names[0] == names[1]:
                raise ValueError(f"--backends must be two names, A,B, got {backends!r}")
            return compare_backends(Settings.make(**given, backends=names), names[0], names[1], terms)
        settings = Settings.make(
            **given, backends=names
        )  # what cannot be right here ends it before the build
        wanted = names or [name for name in settings.backends if name != "dense"]
        say(f"building {baseline}")
        built = build(baseline)
        with tempfile.TemporaryDirectory(prefix="pft_bench_compare_") as folder:
            return compare_versions(
                {**given, "backends": wanted},
                built,
                Version.here(),
                wanted,
                Path(folder),
                terms,
                seed=settings.seed,
            )


def _names(text: str | None) -> list[str]:
    """The names in "A,B"."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def show(table: VerdictTable, console: Console) -> None:
    """Print the table, its summary and everything that speaks against it."""
    for reason in table.forced:
        console.print(f"FORCED, not comparable: {reason}", style="bold red")
    names = ("A", "B", "B / A [95%]", "verdict", "p", "A/A'", "rounds")
    grid = Table("case", numbers=names, title=f"{table.b} against {table.a}")
    for row in table.rows:
        grid.add_row(*cells(row))
    console.print(grid)
    counts = ", ".join(f"{number} {word.value}" for word, number in table.summary.counts.items() if number)
    mean = table.summary.mean
    if mean is not None:
        console.print(
            f"geometric mean of B / A: {mean.value:.3f} over {mean.count} cases ({counts}); {table.without_result} "
            f"without result",
        )
    console.print(
        f"{table.how}; FASTER and SLOWER lie beyond {table.margin:.1%} and beyond what A showed against itself; p and "
        f"verdicts are corrected for {len(table.judged)} cases (Holm) and for all looks; intervals are each case's own",
        style="dim",
    )
    for warning in table.warnings:
        console.print(f"note: {warning}")
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        if row.reason is not None:
            reasons.setdefault(row.reason, []).append(row.title)
    for reason, titles in reasons.items():
        told = titles[0] if len(titles) == 1 else f"{len(titles)} cases"
        console.print(f"{told}: {reason}", style="red")


def cells(row: Row) -> list[str | Text]:
    """One row of the grid."""
    times = ["" if seconds is None else f"{seconds * 1e3:.3g} ms" for seconds in row.medians_s]
    if row.evidence is None or row.judged is None:
        return [row.title, *times, "", "no result", "", "", ""]
    found = row.evidence
    interval = "[?]" if found.low is None or found.high is None else f"[{found.low:.3f}, {found.high:.3f}]"
    style = STYLES[row.judged.verdict]
    word = row.judged.verdict.value
    p = row.judged.p_adjusted
    return [
        row.title,
        *times,
        f"{found.ratio:.3f} {interval}",
        line((word, style)),
        f"{p:.2g}" if p >= 1e-4 else "<1e-4",
        f"{math.expm1(found.floor):.1%}",
        str(found.rounds),
    ]
