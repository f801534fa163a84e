"""What a record is made of: the case, its checks, its time, its counts; none can be built in an illegal state."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from pft_bench.common.text import counted
from pft_bench.harness.measure.results import CheckOutcome, DroppedRound
from pft_bench.harness.measure.statistics import mad, median
from pft_bench.harness.measure.verdicts import ALPHA, Verdict, single_look

if TYPE_CHECKING:
    from pft_bench.harness.problem import Problem

Level = Literal["op", "layer", "model", "threads"]
Mode = Literal["infer", "train", "backward"]
Scalar = str | int | float | bool | None


def threads_text(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return counted(count, "thread")


class Status(StrEnum):
    """How a case ended."""

    OK = "ok"  # checked, and measured if measuring was asked for
    FAILED = "failed"  # a check did not pass
    ERROR = "error"  # an exception
    OOM = "oom"
    CRASHED = "crashed"  # its process died
    TIMEOUT = "timeout"
    IMPLAUSIBLE = "implausible"  # faster than the roof that was measured in the same run
    SKIPPED = "skipped"  # the backend lacks an op that the case needs (NotImplementedError)


class RecordError(ValueError):
    """A line or field that is no record of this schema."""


def require(holds: bool, message: str) -> None:
    """RecordError with this message unless the condition holds."""
    if not holds:
        raise RecordError(message)


def seal(values: Mapping[str, Any]) -> str:
    """Digest of a JSON object as it is read back, its member "seal" apart."""
    content = {key: value for key, value in values.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Case:
    """What was measured: everything that, if changed, makes it another measurement.

    `op` names the operator or layer ("sddmm", "progressive_attention"; "model" at level model), `shapes` its
    sizes by their field names, `options` whatever else tells two cases apart (image, scale, ISA). At level threads it
    is a layer or a model, held against itself on one thread.
    """

    level: Level
    op: str
    backend: str
    device: str
    dtype: str
    mode: Mode
    threads: int
    seed: int
    shapes: Mapping[str, int] = field(default_factory=dict)
    preset: str | None = None
    schedule: tuple[int, ...] | None = None
    k: int | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self.level in get_args(Level), f"level must be op, layer, model or threads, got {self.level!r}"
        )
        require(
            self.mode in get_args(Mode), f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}"
        )
        for name in ("op", "backend", "device", "dtype"):
            require(bool(getattr(self, name)), f"{name} must not be empty")
        # Own copies: a caller's dict that changes later must not change what was recorded.
        object.__setattr__(self, "shapes", dict(self.shapes))
        object.__setattr__(self, "options", dict(self.options))
        if self.schedule is not None:
            object.__setattr__(self, "schedule", tuple(self.schedule))

    @property
    def work(self) -> Literal["op", "layer", "model"]:
        """What runs: that of its level, at level threads a layer or a model."""
        if self.level != "threads":
            return self.level
        return "layer" if self.preset is None else "model"

    @cached_property
    def case_id(self) -> str:
        """Stable name for `--resume`: equal parameters, equal id, in any process and on any machine.

        What is unset does not enter, so that a parameter added later leaves the ids of old cases alone.
        """
        given = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        text = json.dumps(given, sort_keys=True, separators=(",", ":"), allow_nan=False)
        readable = [self.op, self.backend, *([] if self.k is None else [f"k{self.k}"])]
        return "-".join([*readable, hashlib.sha256(text.encode()).hexdigest()[:12]])


@dataclass(frozen=True)
class CheckEntry:
    """One check: `error` against `bound` where it is a comparison of numbers."""

    name: str
    passed: bool
    detail: str = ""
    error: float | None = None
    bound: float | None = None

    @classmethod
    def of(cls, outcome: CheckOutcome) -> CheckEntry:
        """From any check outcome; `worst` is an error in units of its bound.

        NaN and infinite errors, which JSON lacks, move to the detail.
        """
        worst = getattr(outcome, "worst", None)
        found = {
            "error": getattr(outcome, "error", worst),
            "bound": getattr(outcome, "bound", None if worst is None else 1.0),
        }
        detail = outcome.detail
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                detail = f"{detail} ({name} {value})".strip()
                found[name] = None
        numbers = {name: None if value is None else float(value) for name, value in found.items()}
        return cls(outcome.name, bool(outcome.passed), detail, **numbers)


@dataclass(frozen=True)
class Baseline:
    """The baseline's samples of the very rounds in which this case was measured. `control_s` is A'."""

    name: str
    samples_s: tuple[float, ...]
    control_s: tuple[float, ...]


@dataclass(frozen=True)
class Timing:
    """Raw seconds a call, one value per kept round, and how they came about.

    `baseline` is None for the baseline itself, whose second run is `control_s`.
    """

    method: str
    repeats: int
    samples_s: tuple[float, ...]
    rounds: tuple[int, ...]
    dropped: tuple[DroppedRound, ...]
    order_seed: int
    stop_reason: str
    baseline: Baseline | None = None
    control_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.method), "timing needs the name of its method")
        require(self.repeats >= 1, f"repeats must be at least 1, got {self.repeats}")
        series = {"samples_s": self.samples_s}
        if self.baseline is not None:
            series |= {
                "baseline.samples_s": self.baseline.samples_s,
                "baseline.control_s": self.baseline.control_s,
            }
        elif self.control_s:
            series["control_s"] = self.control_s
        require(len(self.rounds) >= 1, "timing needs at least one round")
        for name, values in series.items():
            require(len(values) == len(self.rounds), f"{name} must have one value a kept round")
            require(all(math.isfinite(v) and v > 0 for v in values), f"{name} must be positive seconds")


@dataclass(frozen=True)
class Flops:
    """Three counts that are never mixed (docs/concepts.md), and the bytes the kernel must move."""

    paper_macs: int | None = None
    counted_flops: int | None = None
    kernel_flops: int | None = None
    kernel_bytes: int | None = None

    @classmethod
    def of(cls, problems: Sequence[Problem], paper_macs: int | None = None) -> Flops:
        """What these problems must do, all together."""
        return cls(
            paper_macs=paper_macs,
            kernel_flops=sum(problem.kernel_flops() for problem in problems),
            kernel_bytes=sum(problem.kernel_bytes() for problem in problems),
        )


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes. The sources say how they were read (`pft_bench.harness.measure.memory.Peak`)."""

    peak_allocated_bytes: int | None = None
    peak_allocated_source: str | None = None
    peak_process_bytes: int | None = None
    peak_process_source: str | None = None
    predicted_peak_bytes: int | None = None


@dataclass(frozen=True)
class Derived:
    """What `derive` makes of a `Timing`. `ratio` is t_case / t_baseline: below 1 is faster than the
    baseline.
    """

    median_s: float
    mad_s: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    floor: float | None = None
    delta: float | None = None
    verdict: Verdict | None = None


def derive(timing: Timing) -> Derived:
    """All derived values from raw samples; pure, so that a later reader can recompute and compare."""
    middle, spread = median(timing.samples_s), mad(timing.samples_s)
    if timing.baseline is None:
        return Derived(middle, spread)
    base = timing.baseline
    found = single_look(timing.samples_s, base.samples_s, base.control_s)
    floor = None if base.control_s is None else found.floor
    word = found.verdict(ALPHA)
    return Derived(middle, spread, found.ratio, found.low, found.high, floor, found.delta, word)
