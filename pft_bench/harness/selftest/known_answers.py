"""Comparisons of known answer, as they are kept: a line each, judged again from its samples, and what they come to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ...common.drafts import draft
from ..compare.design import Samples
from ..measure.verdicts import Evidence, Verdict
from ..record import seal

Kind = Literal["A/A", "+5%", "A/A builds"]
KINDS: tuple[Kind, ...] = ("A/A", "+5%")
"""Those that run in one process."""
BUILDS: Kind = "A/A builds"
"""One commit built twice, compared as `compare --baseline` does it (`builds`)."""
SCHEMA = "pft_bench.trial/1"
SAMPLE_SERIES = ("a_s", "b_s", "control_s")
TRIALS = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One comparison of known answer: the seconds of every round, and the verdict that they gave.

    Its line has the samples' values beside its own.
    """

    kind: Kind
    number: int
    environment: str
    threads: int
    margin: float
    samples: Samples
    load: float
    verdict: Verdict
    created: str

    @property
    def evidence(self) -> Evidence:
        """Recomputed from the samples."""
        return self.samples.evidence(self.margin)

    def to_json(self) -> str:
        """One line."""
        own = asdict(self)
        values = {"schema": SCHEMA, **own.pop("samples"), **own}
        values["seal"] = seal(values)
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def of(
        cls, kind: Kind, number: int, environment: str, threads: int, margin: float, found: Samples
    ) -> Trial:
        """The trial of what was measured, judged on what is written, so that a reader of the file judges the same."""
        series: dict[str, Any] = {
            name: tuple(float(f"{value:.6g}") for value in getattr(found, name)) for name in SAMPLE_SERIES
        }
        kept = replace(found, **series, elapsed_s=round(found.elapsed_s, 3))
        verdict = kept.evidence(margin).verdict(0.05)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        load = os.getloadavg()[0]
        return cls(kind, number, environment, threads, margin, kept, load, verdict, created)

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """The trial of a line; ValueError for any other line."""
        values: dict[str, Any] = json.loads(line)
        if values.pop("schema", None) != SCHEMA:
            raise ValueError(f"not a {SCHEMA} line: {line[:80]}")
        sealed = values.pop("seal", None)
        if sealed not in (None, seal({"schema": SCHEMA, **values})):
            raise ValueError(
                f"the line was changed after it was written: its seal {sealed!r} is of another content"
            )
        values["verdict"] = Verdict(values["verdict"])
        parts = {item.name: values.pop(item.name) for item in fields(Samples)}
        samples = Samples(**parts | {name: tuple(parts[name]) for name in SAMPLE_SERIES})
        return cls(samples=samples, **values)


def read_trials(path: Path) -> list[Trial]:
    """All trials of a file; a line cut short by a kill is left out, any other foreign line is a ValueError."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    whole, rest = lines[:-1], lines[-1]
    trials = [Trial.from_json(line) for line in whole if line]
    if rest:  # no newline: its writer was killed; the next trial starts on a line of its own
        with draft(path) as made:
            made.write_text("".join(line + "\n" for line in whole))
    return trials


@dataclass(frozen=True)
class Rates:
    """What the verdicts of known answers came to. UNDECIDED is no false verdict, and no found difference either."""

    kind: Kind
    trials: int
    counts: dict[Verdict, int]

    @property
    def wrong(self) -> int:
        """Identical code called different; a slowdown called faster, or the same."""
        if self.kind in ("A/A", BUILDS):
            return self.counts[Verdict.FASTER] + self.counts[Verdict.SLOWER]
        return self.counts[Verdict.FASTER] + self.counts[Verdict.SAME]

    @property
    def right(self) -> int:
        """Identical code called the same; a slowdown called slower."""
        return self.counts[Verdict.SAME if self.kind in ("A/A", BUILDS) else Verdict.SLOWER]


def rates(trials: Sequence[Trial]) -> list[Rates]:
    """Counts by kind, from verdicts recomputed from the samples; of the kinds that there are."""
    found = []
    for kind in dict.fromkeys((*KINDS, *(trial.kind for trial in trials))):
        words = [trial.evidence.verdict(0.05) for trial in trials if trial.kind == kind]
        found.append(Rates(kind, len(words), {word: words.count(word) for word in Verdict}))
    return found
