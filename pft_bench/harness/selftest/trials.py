"""How often is a verdict wrong? Comparisons whose answer is known: identical code, and a planted slowdown.

The planted slowdown is real work: the same kernel on 5% more window-heads. Every trial builds its own inputs and runs
the very design of `pft-bench compare`; its samples go to a JSON Lines file, so that a run can be cut into slices.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...backends import get
from ...common.drafts import draft, make_folder, named
from ..cases.group import thread_count
from ..cases.inputs import ChangingWork, Inputs
from ..check.operator import check_product
from ..check.spot import spot_product
from ..compare.design import Design, Samples, measure_pair
from ..compare.local import local_layout
from ..measure.contender import Contender
from ..measure.verdicts import MARGIN, Evidence, Verdict
from ..problem import Problem
from ..record import seal

Kind = Literal["A/A", "+5%", "A/A builds"]
KINDS: tuple[Kind, ...] = ("A/A", "+5%")
"""Those that run in one process."""
BUILDS: Kind = "A/A builds"
"""One commit built twice, compared as `compare --baseline` does it (`builds`)."""
SCHEMA = "pft_bench.trial/1"
SAMPLE_SERIES = ("a_s", "b_s", "control_s")
TRIALS = "trials.jsonl"
WINDOW_HEADS: dict[Kind, int] = {"A/A": 80, "+5%": 84}
"""Window-heads of B; A and A' have 80. Both split evenly over two threads."""


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


def operands(window_heads: int, seed: int) -> dict[str, Tensor]:
    """Inputs of a small sddmm: 128 tokens, head_dim 30, 32 kept entries."""
    return Problem("sddmm", window_heads, 1, 128, 30, 32, 32, seed=seed).inputs("cpu")


def contender(given: dict[str, Tensor]) -> Contender:
    """The `cpu` backend's sddmm on its own copy of the operands, so that each side's data lies elsewhere. Inputs change
    and results are judged as in every comparison.
    """
    changing, backend = Inputs({name: tensor.clone() for name, tensor in given.items()}), get("cpu")
    inputs = changing.given
    return Contender(
        "cpu",
        partial(backend.sddmm, inputs["q"], inputs["k"], inputs["index"]),
        lambda _: check_product(backend, "sddmm", inputs),
        work=ChangingWork(changing, lambda output, head: spot_product("sddmm", inputs, output, head)),
    )


def run_trial(kind: Kind, number: int, environment: str, threads: int, margin: float = MARGIN) -> Trial:
    """Measure one comparison of known answer."""

    base, other = (operands(WINDOW_HEADS[name], number) for name in ("A/A", kind))

    def build(side: str) -> Contender:
        return contender(other if side == "B" else base)

    with thread_count(threads):
        found = measure_pair(local_layout(build), Design(margin=margin, seed=number))
    return Trial.of(kind, number, environment, threads, margin, found)


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


def run_trials(
    path: Path, count: int, environment: str, threads: int, stop_after_s: float, margin: float = MARGIN
) -> Iterator[Trial]:
    """Run what `path` lacks of `count` trials of each kind, alternating; each is written before it is given out."""
    known = {(trial.kind, trial.number) for trial in read_trials(path)}
    started = time.perf_counter()
    make_folder(path.parent)
    for number in range(count):
        for kind in KINDS:
            if (kind, number) in known:
                continue
            if time.perf_counter() - started > stop_after_s:
                return
            trial = run_trial(kind, number, environment, threads, margin)
            with named(path), path.open("a") as file:
                file.write(trial.to_json() + "\n")
            yield trial


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
