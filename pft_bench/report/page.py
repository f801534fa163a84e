"""The report of a run as one HTML file that needs nothing else: no network, no script to be read."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from ..common.text import plain
from ..harness.measure.statistics import geometric_mean
from ..harness.measure.verdicts import RUN_MARGIN, Verdict
from ..harness.record import Record, RunFolder, Status
from ..harness.record.yardsticks import YARDSTICKS
from . import marks, words
from .amdahl import ceilings
from .draw import DrawnFigure, pictures
from .folder import command_text, commit_text, machine_text, quality_of
from .series import setting_text
from .tables import contender_text, ordered_stages, step_text, work_text

LEVELS = {
    "model": ("Whole model", "schedule"),
    "layer": ("One attention layer", "step"),
    "op": ("Sparse products", "operator"),
    "threads": ("Thread scaling", "work"),
}

SIGNS = {
    Verdict.FASTER: "▲ faster",
    Verdict.SLOWER: "▼ slower",
    Verdict.SAME: "= same",
    Verdict.UNDECIDED: "? undecided",
}
"""Verdicts as the page writes them: a sign and a word, so that colour only repeats them."""


@cache
def generator() -> str:
    """Which renderer made a page: a digest of everything in this folder, and of matplotlib's version."""
    digest = hashlib.sha256(version("matplotlib").encode())
    for path in sorted(Path(__file__).parent.glob("*.*")):
        digest.update(path.read_bytes())
    return f"pft-bench report {digest.hexdigest()[:12]}"


def anchor(record: Record) -> str:
    """Where the raw samples of a record stand in the page."""
    return f"#{quote(plain(record.case_id, lines=True))}"


def data(value: float | int, text: str, record: Record | None = None, field: str = "") -> Markup:
    """A number as it is read, with its full value in the markup (what sorting, tests and `verify` read)."""
    place = Markup(' data-case="{}" data-field="{}"')
    named = Markup("") if record is None else place.format(record.case_id, field)
    return Markup('<data value="{}"{}>{}</data>').format(repr(value), named, text)


def speedup(record: Record) -> dict[str, Any] | None:
    """Times faster than the baseline, and the interval as text; None for the baseline and without a time."""
    derived = record.derived
    if derived is None or derived.ratio is None:
        return None
    interval = None
    if derived.ratio_low is not None and derived.ratio_high is not None:
        interval = Markup("[{}, {}]").format(
            data(1 / derived.ratio_high, words.digits(1 / derived.ratio_high), record, "speedup_low"),
            data(1 / derived.ratio_low, words.digits(1 / derived.ratio_low), record, "speedup_high"),
        )
    value = 1 / derived.ratio
    return {"value": data(value, words.times(value), record, "speedup"), "interval": interval}


def step_markup(record: Record) -> Markup:
    """The step or schedule, with an arrow, and with places to break a long one."""
    return escape(work_text(record).replace(" -> ", "\u00a0→\u00a0")).replace(",", Markup(",<wbr>"))


def verdict_rows(records: Sequence[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one level's verdict table."""
    scale = marks.interval_scale(records)
    rows = []
    previous = None
    for record in records:
        derived, step = record.derived, step_markup(record)
        verdict = derived.verdict if derived is not None else None
        kind = marks.look(record.case.backend, names)
        rows.append(
            {
                "record": record,
                "step": step,
                "again": step == previous,
                "kind": kind,
                "mark": marks.swatch(kind),
                "speedup": speedup(record),
                "interval": marks.interval_cell(record, scale, kind),
                "verdict": SIGNS[verdict] if verdict else None,
                "verdict_class": verdict.value.lower() if verdict else "",
                "failed": record.status is not Status.OK,
            }
        )
        previous = step
    return rows


def headlines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One card for each backend and level: its geometric mean against the baseline, with the counts.

    Operators have cards where neither layers nor models were measured. Peers and compositions have none: what one would
    use without these kernels stands in the tables.
    """
    cards = []
    whole = any(record.case.level in ("model", "layer") for record in records)
    for level in LEVELS if not whole else [level for level in LEVELS if level != "op"]:
        compared = [
            r for r in own(records) if r.case.level == level and r.derived and r.derived.ratio is not None
        ]
        if level == "threads":  # a mean over different numbers of them means nothing
            most = max((record.case.threads for record in compared), default=0)
            compared = [record for record in compared if record.case.threads == most]
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in compared:
            groups.setdefault((record.case.backend, record.case.op), []).append(record)
        for (_, op), group in groups.items():
            speedups = [1 / r.derived.ratio for r in group if r.derived and r.derived.ratio is not None]
            mean = geometric_mean(speedups)
            verdicts = [r.derived.verdict for r in group if r.derived]
            assert group[0].timing is not None
            assert group[0].timing.baseline is not None
            cards.append(
                {
                    "title": op if level == "op" else LEVELS[group[0].case.work][0],
                    "backend": contender_text(group[0]),
                    "baseline": group[0].timing.baseline.name,
                    "value": data(mean.value, words.times(mean.value)),
                    "one": group[0] if mean.count == 1 else None,
                    "speedup": speedup(group[0]) if mean.count == 1 else None,
                    "count": mean.count,
                    "low": words.times(min(speedups)),
                    "high": words.times(max(speedups)),
                    "verdicts": [
                        f"{verdicts.count(verdict)} {sign}"
                        for verdict, sign in SIGNS.items()
                        if verdicts.count(verdict)
                    ],
                    "single": SIGNS[verdicts[0]] if mean.count == 1 and verdicts[0] else None,
                    "class": verdicts[0].value.lower()
                    if len(set(verdicts)) == 1 and verdicts[0]
                    else "mixed",
                }
            )
    return cards


def own(records: Sequence[Record]) -> list[Record]:
    """Without what kernels are held against."""
    return [record for record in records if record.case.backend not in YARDSTICKS]


def memory_cards(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What each compared model needs, against its baseline of the same schedule."""
    models = [r for r in records if r.case.level == "model" and r.memory.peak_allocated_bytes]
    cards = []
    for record in own(models):
        baseline = record.timing.baseline.name if record.timing and record.timing.baseline else None
        for other in models:
            if other.case.backend == baseline and other.case.schedule == record.case.schedule:
                mine, theirs = record.memory.peak_allocated_bytes, other.memory.peak_allocated_bytes
                assert mine
                assert theirs
                cards.append(
                    {"record": record, "baseline": baseline, "base_bytes": theirs, "ratio": theirs / mine}
                )
    return cards


def _column(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def raw_text(record: Record) -> str:
    """The samples of a record as CSV, every digit of them."""
    timing = record.timing
    assert timing is not None
    name = _column(contender_text(record))
    columns: dict[str, Sequence[float]] = {f"{name}_s": timing.samples_s}
    if timing.baseline is not None:
        base = _column(timing.baseline.name)
        columns[f"{base}_s"] = timing.baseline.samples_s
        columns[f"{base}_again_s"] = timing.baseline.control_s
    elif timing.control_s:
        columns[f"{name}_again_s"] = timing.control_s
    out = io.StringIO()
    out.write(",".join(["round", *columns]) + "\n")
    for i, number in enumerate(timing.rounds):
        out.write(",".join([str(number), *(repr(values[i]) for values in columns.values())]) + "\n")
    return out.getvalue()


def title_of(records: Sequence[Record]) -> tuple[str, str]:
    """What the run was about, and its setting."""
    models = [record for record in records if record.case.work == "model"]
    case = (models or list(records))[0].case
    if models:
        size = f"{case.shapes['height']}×{case.shapes['width']} input"
        name = (case.preset or "model").replace("_x", " ×")
        name = "and other systems" if case.op == "system" else name
        return f"PFT {name}", f"{size}, {case.mode}, {case.dtype}"
    what = {"layer": "Attention layer"}.get(case.work, "Sparse products")
    return what, setting_text((models or list(records))[0])


@cache
def _environment() -> jinja2.Environment:
    def read(name: str) -> str:
        return (resources.files(__package__) / name).read_text(encoding="utf-8")

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals.update(
        data=data, seconds=words.seconds, bytes=words.size, count=words.amount, times=words.times, anchor=anchor,
        style=Markup(read("chart.css") + read("page.css")), script=Markup(read("page.js")), command=command_text,
        machine=machine_text, commit=commit_text, raw=raw_text, strip=marks.rounds_strip, step=step_text,
        who=contender_text,
        margin=f"{RUN_MARGIN * 100:.3g}%", digits=words.digits, stage_order=ordered_stages, generator=generator(),
    )  # fmt: skip
    made.filters["percent"] = lambda share: f"{share:.0%}"
    made.filters["width"] = lambda share: f"{max(share, 0.004) * 100:.2f}%"
    return made


def _known(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The environment with None for what it does not tell, so that a typing error in the template still raises."""
    asked = ("cpu", "gpu", "threads", "system", "python", "libraries", "git", "host")
    now = dict.fromkeys(("load_average", "roof")) | dict(environment.get("now") or {})
    return dict.fromkeys(asked) | dict(environment) | {"now": now}


def render(folder: RunFolder, drawn: Sequence[DrawnFigure] | None = None) -> str:
    """The page, with its figures if they are drawn already; the same folder always gives the same text."""
    drawn = pictures(folder) if drawn is None else drawn
    records = folder.records
    names = folder.backends
    title, setting = title_of(records)
    tables = []
    for level, (heading, column) in LEVELS.items():
        chosen = [record for record in records if record.case.level == level]
        if chosen:
            tables.append(
                {"level": level, "title": heading, "column": column, "rows": verdict_rows(chosen, names)}
            )
    used = list(dict.fromkeys(record.environment for record in records))
    staged = [record for record in records if record.stages_s]
    page = _environment().get_template("page.html")
    text = page.render(
        title=title,
        setting=setting,
        folder=folder,
        records=records,
        cards=headlines(records),
        memory_cards=memory_cards(records)[:2],
        tables=tables,
        quality=quality_of(folder),
        figures=[picture for picture in drawn if picture.figure.kind != "stages"],
        stages=[picture for picture in drawn if picture.figure.kind == "stages"],
        staged=staged,
        ceilings=ceilings(records),
        left_cards=[
            c for c in ceilings(own(records)) if c.record.derived and c.record.derived.ratio is not None
        ][:2],
        unmeasured=[record for record in records if record.status is not Status.OK],
        environments=[(name, _known(folder.environments.get(name, {}))) for name in used],
        generated=any(record.case.options.get("weights") == "generated" for record in records),
    )
    return plain(re.sub(r"\n\s*\n+", "\n", text), lines=True)
