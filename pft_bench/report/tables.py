"""Tables of records for a terminal, and the CSV summary. Pure functions of records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box

from ..common.drafts import draft
from ..common.stages import STAGES
from ..common.terminal import Table, Text
from ..common.text import plain
from ..harness.measure.verdicts import Verdict
from ..harness.record import Record, Status, threads_text, to_frame
from ..harness.record.yardsticks import COMPOSED, FACTORIZED

if TYPE_CHECKING:
    import pandas as pd

_VERDICT_STYLE = {
    Verdict.FASTER: "bold green",
    Verdict.SLOWER: "bold red",
    Verdict.SAME: "dim",
    Verdict.UNDECIDED: "yellow",
}


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it, three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def bytes_text(count: int | None) -> str:
    """Bytes in MiB or GiB."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def count_text(count: int | None, unit: str) -> str:
    """A count with its metric prefix."""
    if count is None:
        return "-"
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}"


def speedup_text(record: Record) -> str:
    """How many times faster than the baseline, with its 95% interval."""
    derived = record.derived
    if derived is None or derived.ratio is None:
        return "baseline" if record.timing is not None else "-"
    if derived.ratio_low is None or derived.ratio_high is None:
        return f"{1 / derived.ratio:.3g}x"
    return f"{1 / derived.ratio:.3g}x [{1 / derived.ratio_high:.3g}, {1 / derived.ratio_low:.3g}]"


def step_text(record: Record) -> str:
    """What was run: the schedule, the step of a chain, or the op and its K."""
    case = record.case
    if case.work == "model":
        if "system" in case.options:
            return str(case.options["system"])
        schedule = str(case.options.get("sched", case.schedule))
        return f"{schedule} {case.options['attention']}" if "attention" in case.options else schedule
    if case.work == "layer":
        return f"{case.shapes['candidates']} -> {case.k}"
    return f"{case.op} K={case.k}"


def work_text(record: Record) -> str:
    """`step_text` where layers and models stand in one table: at level threads it says which is a model."""
    case = record.case
    return f"{'model ' if case.level == 'threads' and case.work == 'model' else ''}{step_text(record)}"


def contender_text(record: Record) -> str:
    """What ran it: the backend, at level threads with their number."""
    case = record.case
    return f"{case.backend}, {threads_text(case.threads)}" if case.level == "threads" else case.backend


def _check_cell(record: Record) -> Text:
    if record.status is Status.OK:
        return Text("ok", style="green")
    return Text(record.status.value.upper(), style="bold red")


def row_line(record: Record) -> str:
    """What came of one row in one line: its check and time, or its status and why there is no time."""
    what = f"{record.case.level} {step_text(record)} on {contender_text(record)}"
    if record.status is not Status.OK:
        return f"{what}: {record.status.value}: {record.reason}"
    if record.derived is None:
        return f"{what}: check ok"
    speedup = speedup_text(record)
    verdict = "" if record.derived.verdict is None else f" {record.derived.verdict.value}"
    return f"{what}: check ok, {seconds_text(record.derived.median_s)}, {speedup}{verdict}"


def without_slower_compositions(records: Sequence[Record]) -> list[Record]:
    """All but the compositions of PyTorch's operators that were measured and are not the fastest of their step."""
    fastest: dict[tuple[str, str], tuple[float, str]] = {}
    for record in records:
        if record.case.backend in COMPOSED and record.derived is not None:
            step = (record.case.level, work_text(record))
            time = (record.derived.median_s, record.case.case_id)
            fastest[step] = min(fastest.get(step, time), time)
    kept = {case_id for _, case_id in fastest.values()}
    return [
        record
        for record in records
        if record.case.backend not in COMPOSED or record.derived is None or record.case.case_id in kept
    ]


def results_table(records: Sequence[Record], level: str, width: int = 100) -> Table:
    """One row for each record of a level: check, time, speed-up with interval and verdict, memory, FLOPs.

    Of the compositions of PyTorch's operators a step shows the fastest. On a terminal of fewer than 96 columns
    (`width`) the FLOPs are left out. The summary and the report have all of it.
    """
    of_level = [record for record in records if record.case.level == level]
    chosen = without_slower_compositions(of_level)
    titles = {
        "op": "Sparse products",
        "layer": "One attention layer (candidates -> kept)",
        "model": "Whole model",
        "threads": "Threads (candidates -> kept of a layer, or the model)",
    }
    captions = []
    if len(chosen) < len(of_level):
        captions.append(
            "composed-*: put together from PyTorch's operators, the fastest way of each step; all: summary.csv"
        )
    if level == "layer" and any(record.case.backend == FACTORIZED for record in chosen):
        captions.append("rank-factorized: another system's attention (SST), to all tokens")
    table = Table(
        title=titles[level], caption=". ".join(captions) or None, box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column(
        {"op": "op", "layer": "step", "model": "schedule", "threads": "work"}[level],
        min_width=12,
        overflow="fold",
    )
    for name in ("backend", "check"):
        table.add_column(name, no_wrap=True)
    with_flops = width >= 96
    for name in ("latency", "speed-up [95%]", "verdict", "memory", "FLOPs")[: 5 if with_flops else 4]:
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for record in chosen:
        step = work_text(record)
        if previous not in (None, step):
            table.add_section()
        derived = record.derived
        verdict = Text("")
        if derived is not None and derived.verdict is not None:
            verdict = Text(derived.verdict.value, style=_VERDICT_STYLE[derived.verdict])
        table.add_row(
            step if step != previous else "",
            contender_text(record),
            _check_cell(record),
            "-" if derived is None else seconds_text(derived.median_s),
            speedup_text(record),
            verdict,
            bytes_text(record.memory.peak_allocated_bytes),
            *([count_text(record.flops.counted_flops, "")] if with_flops else []),
        )
        previous = step
    return table


def stage_table(records: Sequence[Record]) -> Table | None:
    """Seconds by stage of the model, a column for each schedule and backend; None without model records."""
    chosen = [record for record in records if record.stages_s]
    if not chosen:
        return None
    headings = [Text(f"{plain(contender_text(record))}\n{plain(step_text(record))}") for record in chosen]
    table = Table("stage", numbers=headings, title="Where the model's time goes", box=box.SIMPLE_HEAD)
    totals = [sum((record.stages_s or {}).values()) for record in chosen]
    for stage in ordered_stages(chosen):
        cells = []
        for record, total in zip(chosen, totals, strict=True):
            seconds = (record.stages_s or {}).get(stage)
            cells.append("-" if seconds is None else f"{seconds_text(seconds)}  {seconds / total:4.0%}")
        table.add_row(stage, *cells)
    table.add_section()
    table.add_row("sum", *[seconds_text(total) for total in totals])
    timed = [record.derived for record in chosen]
    table.add_row("timed", *["-" if derived is None else seconds_text(derived.median_s) for derived in timed])
    return table


def ordered_stages(records: Iterable[Record]) -> list[str]:
    """Every stage of the records: known ones in their order, others after them."""
    present = {stage for record in records for stage in (record.stages_s or {})}
    return [s for s in STAGES if s in present] + sorted(present - set(STAGES))


def problem_lines(records: Sequence[Record]) -> list[str]:
    """One line for each record without a result: what it was, its status and why."""
    return [row_line(record) for record in records if record.status is not Status.OK]


def write_summary(records: Sequence[Record], path: Path) -> None:
    """All records as a CSV, one row each, units in the column names; raw samples stay in the records."""
    write_csv(to_frame(records), path)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A table as a CSV file."""
    with draft(path) as made:
        frame.to_csv(made, index=False)
