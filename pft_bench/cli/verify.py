"""`pft-bench verify`: every derived number of a run folder, computed again from its raw samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import Console
from . import options
from .work import at_work

if at_work(__name__):
    from ..harness.measure.environment import processor
    from ..harness.record import (
        ENVIRONMENTS,
        RECORDS,
        RecordError,
        RunFolder,
        known_environments,
        record_files,
    )
    from ..harness.selftest.known_answers import TRIALS, Trial
    from ..report.folder import QUALITY
    from ..report.verification import Mismatch, Verification
    from ..report.verify import hold_environments, verify_folder


def verify(
    folder: Annotated[
        Path, options.argument("DIR", help="Run folder, or the comparisons of `selftest --verdicts`.")
    ],
    count: Annotated[
        bool, typer.Option("--recount/--no-recount", help="Count FLOPs again; takes seconds for each model.")
    ] = True,
) -> None:
    """Recompute medians, intervals, verdicts, operations and rates, and make the report's texts again.

    Records, rows of an evaluation, settings and environments carry digests, which must match (the oldest have none).
    Pictures (PNG) are not read; PSNR and SSIM are not computed again. Exit code 1 if any number or text is not what
    the raw samples give.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"DIR must be a run folder, got {folder}, which {what}")
    console = Console()
    if (folder / TRIALS).is_file():
        found = verify_trials(folder)
    elif not can_verify(folder):
        inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and can_verify(path)]
        raise ValueError(
            f"DIR must hold {RECORDS} (a run), {QUALITY} (an evaluation) or {TRIALS} (comparisons of "
            f"`pft-bench selftest`), got {folder}"
            + (f" (there is one in {', '.join(inside)})" if inside else "")
        )
    else:
        from ..insight.counts import formula_counts, recount  # here: they need PyTorch, comparisons do not

        found = verify_folder(
            folder,
            formula=formula_counts,
            recount=recount if count else None,
            processor=processor(),
        )
        hold_crossover(found, folder)
    if found.unfinished:
        console.print(found.unfinished, style="bold yellow")
    for note in found.notes:
        console.print(f"note: {note}")
    for mismatch in found.mismatches:
        console.print(f"WRONG: {mismatch}", style="bold red")
    rounded = (
        f", {found.rounded} of them but for the last place (another processor or numpy)"
        if found.rounded
        else ""
    )
    console.print(f"{found.values} numbers recomputed{rounded}; {', '.join(found.files) or 'no file'} read")
    if found.mismatches:
        console.print(f"{len(found.mismatches)} do not agree with the raw samples", style="bold red")
        raise typer.Exit(1)
    console.print("everything agrees with the raw samples", style="green")


def hold_crossover(result: Verification, folder: Path) -> None:
    """The answers of `pft-bench crossover`, if there are any, by the same bisection over the folder's records."""
    from ..insight.crossover import CROSSOVER, answers_that_differ

    if not (folder / CROSSOVER).is_file():
        return
    try:
        records = RunFolder.read(folder).records
    except RecordError:
        return  # said already
    count, wrong = answers_that_differ(folder / CROSSOVER, records)
    result.files.append(CROSSOVER)
    result.values += count
    result.mismatches += [Mismatch(CROSSOVER, "an answer", text, "what the records give") for text in wrong]


def can_verify(folder: Path) -> bool:
    """Whether a folder holds what this command reads."""
    return bool(record_files(folder)) or any((folder / name).is_file() for name in (QUALITY, TRIALS))


def verify_trials(folder: Path) -> Verification:
    """Each verdict of a folder of `pft-bench selftest --verdicts`, judged again from its raw samples."""
    result, seen, bare, count = Verification(files=[TRIALS]), set(), 0, 0
    known = {}
    with result.reading(ENVIRONMENTS, "environments"):
        known = known_environments(folder)
        hold_environments(result, known)
    for number, line in enumerate((folder / TRIALS).read_text().splitlines(), start=1):
        where = f"line {number}"
        try:
            trial = Trial.from_json(line)
            fresh = trial.evidence.verdict(0.05)
        except (ValueError, TypeError, KeyError) as error:
            result.mismatches.append(Mismatch(TRIALS, where, str(error), "a comparison that was written"))
            continue
        bare, count = bare + ('"seal"' not in line), count + 1
        result.values += 1
        if trial.verdict != fresh:
            result.mismatches.append(
                Mismatch(TRIALS, f"{where}: the verdict", trial.verdict.value, fresh.value)
            )
        if trial.environment not in known:
            wanted = f"one of {ENVIRONMENTS}"
            result.mismatches.append(Mismatch(TRIALS, f"{where}: the environment", trial.environment, wanted))
        if (trial.kind, trial.number) in seen:
            wanted = "each comparison once"
            result.mismatches.append(Mismatch(TRIALS, where, f"{trial.kind} {trial.number} again", wanted))
        seen.add((trial.kind, trial.number))
    if bare:
        result.notes.append(f"{bare} of {count} comparisons carry no digest (older versions wrote none)")
    return result
