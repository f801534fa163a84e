"""What a session found, as Markdown: written again after every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.drafts import draft
from ...common.text import plain
from ...harness.record import RunFolder
from ...harness.record.folder import record_files
from ...report.tables import seconds_text, speedup_text, step_text
from .running import BAD, OPEN, SUMMARY, Session, read_results

Result = Mapping[str, Any]
END = "the step"
"""Name of the result that a step ends with."""


def verdict(results: Sequence[Result], name: str) -> tuple[str, str]:
    """How a step ended, in a word, and what of it is wrong or open."""
    mine = [*{one["item"]: one for one in results if one["step"] == name and one["item"] != END}.values()]
    bad = [one for one in mine if one["status"] in BAD]
    left = [one for one in mine if one["status"] in OPEN]
    if not mine:
        return "not run", ""
    if bad:
        return "FAILED", f"{len(bad)} of {len(mine)}"
    if any(one["status"] == "left out" for one in left):
        return "cut", f"{len(left)} of {len(mine)} did not fit"
    return ("not rehearsed" if len(left) == len(mine) else "passed"), ""


def last_line(results: Sequence[Result], names: Sequence[str]) -> tuple[str, int]:
    """All steps by how they ended, and the exit code: 1 something failed, 3 something did not fit, 0 all is right."""
    ends: dict[str, list[str]] = {}
    for name in names:
        word, told = verdict(results, name)
        ends.setdefault(word, []).append(f"{name} ({told})" if told else name)
    order = ("passed", "not rehearsed", "cut", "not run", "FAILED")
    text = "; ".join(f"{word}: {', '.join(ends[word])}" for word in order if word in ends)
    return text, 1 if "FAILED" in ends else 3 if {"cut", "not run"} & ends.keys() else 0


def write_summary(session: Session, names: Sequence[str]) -> Path:
    """Write summary.md: how each step ended, what is wrong, what did not fit, the ladder, the counters."""
    results = [
        *{(one["step"], one["item"]): one for one in read_results(session.out)}.values()
    ]  # the last counts
    path = session.out / SUMMARY
    with draft(path) as made:
        made.write_text("\n".join(_lines(session, results, names)) + "\n")
    return path


def _lines(session: Session, results: Sequence[Result], names: Sequence[str]) -> Iterator[str]:
    yield "# GPU session" + (
        ": a rehearsal in the emulator, nothing was measured" if session.rehearse else ""
    )
    yield from _machine(results)
    yield from ("", "| step | ended | checked | seconds | limit |", "|---|---|---|---|---|")
    for name in names:
        mine = [one for one in results if one["step"] == name and one["item"] != END]
        end = next((one for one in results if one["step"] == name and one["item"] == END), None)
        word, told = verdict(results, name)
        limit = "-" if end is None else f"{end['facts']['limit_s']:.0f}"
        took = "-" if end is None else f"{end['seconds']:.0f}"
        yield f"| {name} | {word}{' ' * bool(told)}{told} | {len(mine)} | {took} | {limit} |"
    for title, states in (("What is wrong", BAD), ("What nobody has looked at", OPEN)):
        found = [one for one in results if one["status"] in states]
        if found:
            yield from ("", f"## {title}", "")
            yield from (f"- {_cell(_told(one))}" for one in found)
    for folder in sorted(session.out.glob("ladder_*")):
        if record_files(folder):
            yield from _ladder(folder, session.rehearse)
    rows = [row for one in results for row in one.get("facts", {}).get("counters", ()) if row[4] != "-"]
    if rows:
        yield from ("", "## Counters beside Nsight Compute's", "")
        yield from _table(("step", "kernel", "what", "counted or predicted", "profiled", "ratio"), rows)


def _told(one: Result) -> str:
    return f"{one['step']}: {one['item']}: {one['status']}{': ' * bool(one['detail'])}{one['detail']}"


def _machine(results: Sequence[Result]) -> Iterator[str]:
    facts = next((one["facts"] for one in results if "gpu now" in one.get("facts", {})), None)
    if facts is None:
        return
    gpu, libraries = facts["gpu"] or {}, facts["libraries"]
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    yield ""
    yield f"{_cell(gpu.get('name', 'no GPU'))}, driver {_cell(gpu.get('driver', '-'))}; {_cell(versions)}"


def _ladder(folder: Path, rehearsed: bool) -> Iterator[str]:
    """Median and speed-up over `dense` of each contender, a line for each op, layer and pass; no emulator's times."""
    run = RunFolder.read(folder)
    names = run.backends
    yield from ("", f"## {folder.name}{'' if rehearsed else ': median, times as fast as dense [95%]'}", "")
    rows: dict[str, dict[str, str]] = {}
    for record in run.records:
        work = step_text(record) + ("" if record.case.mode == "infer" else f", {record.case.mode}")
        cell = record.status.value
        if record.derived is not None and not rehearsed:
            cell = seconds_text(record.derived.median_s)
            cell += "" if record.derived.ratio is None else f", {speedup_text(record)}"
        rows.setdefault(work, {})[record.case.backend] = cell
    yield from _table(
        ("work", *names), [(work, *(cells.get(n, "") for n in names)) for work, cells in rows.items()]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, head))} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: object) -> str:
    return plain(text).replace("|", "\\|")
