"""The report as Markdown, for a pull request or a README: verdicts, stages, ceilings, and what has no result."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from markupsafe import escape

from ..common.text import plain
from ..harness.record import Record, RunFolder, Status
from . import words
from .amdahl import ceilings
from .folder import command_text, commit_text, machine_text, quality_of
from .page import LEVELS, SIGNS, generator, title_of
from .tables import contender_text, ordered_stages, problem_lines, step_text, work_text

_MARKS = {**{mark: f"\\{mark}" for mark in "\\`*_[]|~$#"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}


def text(found: object) -> str:
    """A name or a message on one line, nothing in it read as Markdown or as HTML."""
    return "".join(_MARKS.get(character, character) for character in plain(found))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table whose first `left` columns are texts, the others numbers; all of them Markdown."""
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return ["| " + " | ".join(row) + " |" for row in (heads, rule, *rows)]


def _command(words: str) -> str:
    """A command line as code; one with what could be an HTML tag in it, as the HTML of code."""
    return f"<pre><code>{escape(plain(words))}</code></pre>" if "<" in words else f"    {plain(words)}"


def _verdict_row(record: Record) -> list[str]:
    derived, memory = record.derived, record.memory.peak_allocated_bytes
    row = [text(work_text(record).replace("->", "→")), text(contender_text(record))]
    if record.status is not Status.OK:
        return [*row, f"✕ {record.status.value}", "–", "–", "–", "–"]
    verdict, gain, interval, latency = "baseline" if record.timing else "checked", "", "", "–"
    if derived is not None:
        latency = words.seconds(derived.median_s)
        if derived.ratio is not None:
            verdict = SIGNS[derived.verdict] if derived.verdict else ""
            gain = words.times(1 / derived.ratio)
            if derived.ratio_low is not None and derived.ratio_high is not None:
                interval = f"[{words.digits(1 / derived.ratio_high)}, {words.digits(1 / derived.ratio_low)}]"
    return [*row, verdict, gain, interval, latency, "–" if memory is None else words.size(memory)]


def _stages(records: Sequence[Record]) -> list[str]:
    chosen = [record for record in records if record.stages_s]
    if not chosen:
        return []
    totals = [sum((record.stages_s or {}).values()) for record in chosen]
    rows = []
    for stage in ordered_stages(chosen):
        row = [text(stage)]
        for record, total in zip(chosen, totals, strict=True):
            seconds = (record.stages_s or {}).get(stage)
            row.append("–" if seconds is None else f"{words.seconds(seconds)} ({seconds / total:.0%})")
        rows.append(row)
    heads = ["stage", *(text(f"{contender_text(record)} {step_text(record)}") for record in chosen)]
    lines = ["## Where the model's time goes", "", *_table(heads, rows, 1), ""]
    for found in ceilings(records):
        what = text(f"{contender_text(found.record)}, schedule {step_text(found.record)}")
        lines.append(
            f"- {what}: attention takes {found.share:.0%}; "
            f"with attention free, the model gains at most {words.times(found.gain)}."
        )
    return [*lines, ""]


def _quality(folder: RunFolder) -> list[str]:
    table = quality_of(folder)
    if table is None:
        return []
    rows = []
    for line in table.rows:
        mark = "**" if line.is_mean else ""
        cells = ("–" if found is None else "{:.2f} / {:.4f}".format(*found) for found in line.values)
        rows.append([f"{mark}{cell}{mark}" for cell in (text(line.name), *cells)])
    heads = ["image", *(text(name) for name in table.variants)]
    return ["## Quality on Y (PSNR in dB / SSIM)", "", *_table(heads, rows, 1), ""]


def render_markdown(folder: RunFolder, pictures: Sequence[str] = ()) -> str:
    """The report's text; `pictures` are files beside it to show."""
    records = folder.records
    title, setting = title_of(records)
    lines = [f"# {text(title)}", "", f"{text(setting)}.", ""]
    for told in filter(None, (folder.unfinished, folder.slower)):
        lines += [f"**{text(told)}**", ""]
    for name in dict.fromkeys(record.environment for record in records):
        environment = folder.environments.get(name, {})
        command, commit = command_text(environment), commit_text(environment)
        lines.append(f"{text(machine_text(environment))}{f'; commit {commit}' if commit else ''}.")
        lines += ["", _command(command)] if command else []
        lines.append("")
    lines += _quality(folder)
    heads = ["backend", "verdict", "speed-up", "95% interval", "latency", "memory"]
    for level, (heading, column) in LEVELS.items():
        chosen = [record for record in records if record.case.level == level]
        if chosen:
            rows = [_verdict_row(record) for record in chosen]
            lines += [f"## {heading}", "", *_table([column, *heads], rows, 3), ""]
    lines += _stages(records)
    for name in pictures:
        lines += [f"![{text(name.removesuffix('.png').replace('_', ' '))}]({quote(name)})", ""]
    bad = [record for record in records if record.status is not Status.OK]
    if bad:
        lines += [f"## {len(bad)} of {len(records)} cases have no result", ""]
        lines += [f"- {text(line)}" for line in problem_lines(bad)]
        lines.append("")
    return "\n".join([*lines, f"<!-- {generator()} -->", ""])
