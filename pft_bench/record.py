"""The result of one case as one line of JSON, and the folder that such lines are kept in.

A `Record` cannot be built in a state that says nothing or contradicts itself: only a passed check goes with a
time, and whatever else happened carries its reason. Raw samples are stored; what is derived from them
(`derive`) is stored too, and can always be computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pandas as pd

from pft_bench.measure.candidate import CheckOutcome
from pft_bench.measure.rounds import DroppedRound, RoundsResult
from pft_bench.measure.statistics import Verdict, compare, mad, median

SCHEMA = "pft_bench.record/1"
_LINE_START = f'{{"schema":"{SCHEMA}"'
_LINE_END = re.compile(r'"created":"[^"]*"\}$')

Level = Literal["op", "layer", "model"]
Mode = Literal["infer", "train"]
Scalar = str | int | float | bool | None


class Status(StrEnum):
    """How a case ended."""

    OK = "ok"  # checked, and measured if measuring was asked for
    FAILED = "failed"  # a check did not pass
    ERROR = "error"  # an exception
    OOM = "oom"
    CRASHED = "crashed"  # its process died
    TIMEOUT = "timeout"
    SKIPPED = "skipped"  # not tried, e.g. the backend is not available


class RecordError(ValueError):
    """A line or field that is no record of this schema."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RecordError(message)


@dataclass(frozen=True)
class Case:
    """What was measured: everything that, if changed, makes it another measurement.

    `op` names the operator or layer ("sddmm", "progressive_attention"; "model" at level model), `shapes` its
    sizes by their field names, `options` whatever else tells two cases apart (image, scale, ISA).
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
        _require(self.level in get_args(Level), f"level must be op, layer or model, got {self.level!r}")
        _require(self.mode in get_args(Mode), f"mode must be infer or train, got {self.mode!r}")
        for name in ("op", "backend", "device", "dtype"):
            _require(bool(getattr(self, name)), f"{name} must not be empty")
        # Own copies: a caller's dict that changes later must not change what was recorded.
        object.__setattr__(self, "shapes", dict(self.shapes))
        object.__setattr__(self, "options", dict(self.options))
        if self.schedule is not None:
            object.__setattr__(self, "schedule", tuple(self.schedule))

    @property
    def case_id(self) -> str:
        """Stable name for `--resume`: equal parameters, equal id, in any process and on any machine.

        What is unset does not enter, so that a parameter added later leaves the ids of old cases alone.
        """
        given = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        text = json.dumps(given, sort_keys=True, separators=(",", ":"), allow_nan=False)
        readable = [self.op, self.backend, *([] if self.k is None else [f"k{self.k}"])]
        return "-".join([*readable, hashlib.sha256(text.encode()).hexdigest()[:12]])


@dataclass(frozen=True)
class CheckResult:
    """One check: `error` against `bound` where it is a comparison of numbers."""

    name: str
    passed: bool
    detail: str = ""
    error: float | None = None
    bound: float | None = None

    @classmethod
    def of(cls, outcome: CheckOutcome) -> CheckResult:
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
        _require(bool(self.method), "timing needs the name of its method")
        _require(self.repeats >= 1, f"repeats must be at least 1, got {self.repeats}")
        series = {"samples_s": self.samples_s}
        if self.baseline is not None:
            series |= {
                "baseline.samples_s": self.baseline.samples_s,
                "baseline.control_s": self.baseline.control_s,
            }
        elif self.control_s:
            series["control_s"] = self.control_s
        _require(len(self.rounds) >= 1, "timing needs at least one round")
        for name, values in series.items():
            _require(len(values) == len(self.rounds), f"{name} must have one value a kept round")
            _require(all(math.isfinite(v) and v > 0 for v in values), f"{name} must be positive seconds")


@dataclass(frozen=True)
class Flops:
    """Three counts that are never mixed (DESIGN.md, section 4), and the bytes the kernel must move."""

    paper_macs: int | None = None
    counted_flops: int | None = None
    kernel_flops: int | None = None
    kernel_bytes: int | None = None


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes. The sources say how they were read (`pft_bench.measure.memory.Peak`)."""

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
    found = compare(timing.samples_s, timing.baseline.samples_s, timing.baseline.control_s)
    return Derived(
        middle, spread, found.ratio, found.low, found.high, found.floor, found.delta, found.verdict
    )


@dataclass(frozen=True)
class Record:
    """One case's result. Build it with `Record.ok`, `Record.failed` or `Record.without_result`.

    `environment` is the fingerprint of an entry in the run folder's `environment.json`.
    """

    case: Case
    status: Status
    environment: str
    reason: str | None = None
    checks: tuple[CheckResult, ...] = ()
    timing: Timing | None = None
    derived: Derived | None = None
    stages_s: Mapping[str, float] | None = None
    flops: Flops = field(default_factory=Flops)
    memory: Memory = field(default_factory=Memory)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        _require(bool(self.environment), "a record needs the fingerprint of its environment")
        if self.status is Status.OK:
            _require(bool(self.checks), "status ok needs check results")
            _require(all(check.passed for check in self.checks), "status ok with a check that did not pass")
            _require(self.reason is None, "status ok carries no reason")
        else:
            _require(bool(self.reason), f"status {self.status.value} needs a reason")
            timed = self.timing is not None or self.stages_s is not None
            _require(not timed, f"status {self.status.value} carries no time")
            measured = (self.memory.peak_allocated_bytes, self.memory.peak_process_bytes)
            _require(measured == (None, None), f"status {self.status.value} carries no measured memory")
        _require((self.timing is None) == (self.derived is None), "timing and derived values go together")
        if self.stages_s is not None:
            object.__setattr__(self, "stages_s", dict(self.stages_s))
            sound = all(math.isfinite(value) and value >= 0 for value in self.stages_s.values())
            _require(sound, "stages_s must be seconds, none negative")

    @property
    def case_id(self) -> str:
        """The case's stable id."""
        return self.case.case_id

    @classmethod
    def ok(
        cls,
        case: Case,
        environment: str,
        checks: Iterable[CheckOutcome],
        *,
        timing: Timing | None = None,
        stages_s: Mapping[str, float] | None = None,
        flops: Flops | None = None,
        memory: Memory | None = None,
    ) -> Self:
        """A checked case, with its time where one was taken."""
        return cls(
            case,
            Status.OK,
            environment,
            checks=tuple(CheckResult.of(check) for check in checks),
            timing=timing,
            derived=None if timing is None else derive(timing),
            stages_s=stages_s,
            flops=flops or Flops(),
            memory=memory or Memory(),
        )

    @classmethod
    def without_result(
        cls,
        case: Case,
        environment: str,
        status: Status,
        reason: str,
        *,
        checks: Iterable[CheckOutcome] = (),
        flops: Flops | None = None,
        predicted_peak_bytes: int | None = None,
    ) -> Self:
        """A case that was not measured, and why: any status but `ok`."""
        return cls(
            case,
            status,
            environment,
            reason=reason,
            checks=tuple(CheckResult.of(check) for check in checks),
            flops=flops or Flops(),
            memory=Memory(predicted_peak_bytes=predicted_peak_bytes),
        )

    @classmethod
    def of_rounds(
        cls,
        case: Case,
        environment: str,
        result: RoundsResult,
        name: str,
        *,
        stages_s: Mapping[str, float] | None = None,
        flops: Flops | None = None,
        memory: Memory | None = None,
    ) -> Self:
        """The record of candidate `name` of a measurement: its times, or the reason why it has none."""
        found = result.candidates[name]
        if found.rejection is not None:
            return cls.without_result(
                case,
                environment,
                Status(found.rejection.status),
                found.rejection.reason,
                checks=found.checks,
                flops=flops,
                predicted_peak_bytes=None if memory is None else memory.predicted_peak_bytes,
            )
        timing = timing_of(result, name)
        return cls.ok(
            case, environment, found.checks, timing=timing, stages_s=stages_s, flops=flops, memory=memory
        )

    def to_json(self) -> str:
        """One line, without its newline. The schema comes first, so that even a cut line tells what it
        was.
        """
        values = {"schema": SCHEMA, "case_id": self.case_id, **asdict(self)}
        return json.dumps(values, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The record of a line; RecordError names what is wrong with any other line."""
        try:
            values = json.loads(line, parse_constant=_no_constant)
        except ValueError as error:
            raise RecordError(f"not JSON: {error}") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        _require(schema == SCHEMA, f"schema {schema!r}, this version reads {SCHEMA!r}")
        try:
            record: Self = _record_of(cls, values)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"invalid record: {error}") from None
        _require(
            record.case_id == values["case_id"],
            f"case_id {values['case_id']} does not belong to its case ({record.case_id})",
        )
        return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def timing_of(result: RoundsResult, name: str) -> Timing:
    """The raw samples of one candidate with those of the baseline from the same rounds."""
    found, base = result.candidates[name], result.candidates[result.baseline]
    compared = name != result.baseline and bool(base.samples_s)
    return Timing(
        method=result.method,
        repeats=found.repeats,
        samples_s=found.samples_s,
        rounds=result.rounds,
        dropped=result.dropped,
        order_seed=result.order_seed,
        stop_reason=result.stop_reason,
        baseline=Baseline(result.baseline, base.samples_s, result.control_s) if compared else None,
        control_s=result.control_s if name == result.baseline else (),
    )


def _build(kind: type[Any], values: Mapping[str, Any], **replaced: Any) -> Any:
    """A dataclass from a JSON object: lists become tuples, unknown and missing fields are errors."""
    known = {item.name for item in fields(kind)}
    _require(set(values) == known, f"{kind.__name__} lacks or adds {sorted(set(values) ^ known)}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**{**plain, **replaced})


def _record_of(kind: type[Any], values: Mapping[str, Any]) -> Any:
    body = {key: value for key, value in values.items() if key not in ("schema", "case_id")}
    timing, derived = body["timing"], body["derived"]
    if timing is not None:
        base = timing["baseline"]
        dropped = tuple(_build(DroppedRound, item) for item in timing["dropped"])
        baseline = None if base is None else _build(Baseline, base)
        timing = _build(Timing, timing, dropped=dropped, baseline=baseline)
    if derived is not None:
        word = derived["verdict"]
        derived = _build(Derived, derived, verdict=None if word is None else Verdict(word))
    return _build(
        kind,
        body,
        case=_build(Case, body["case"]),
        status=Status(body["status"]),
        checks=tuple(_build(CheckResult, check) for check in body["checks"]),
        timing=timing,
        derived=derived,
        flops=_build(Flops, body["flops"]),
        memory=_build(Memory, body["memory"]),
    )


def recompute(record: Record, tolerance: float = 1e-12) -> list[str]:
    """Differences between the stored derived values and those of the raw samples; empty if they agree."""
    if record.timing is None or record.derived is None:
        return []
    problems = []
    for name, fresh in asdict(derive(record.timing)).items():
        stored = getattr(record.derived, name)
        if isinstance(stored, float) and isinstance(fresh, float):
            same = math.isclose(stored, fresh, rel_tol=tolerance, abs_tol=tolerance)
        else:
            same = stored == fresh
        if not same:
            problems.append(f"{record.case_id}: {name} is stored as {stored}, raw samples give {fresh}")
    return problems


@dataclass(frozen=True)
class Problem:
    """A line that gave no record."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """All records of a file, and what was not one: lines cut short by a kill, and foreign or damaged
    lines.
    """

    records: tuple[Record, ...]
    truncated: tuple[Problem, ...]
    foreign: tuple[Problem, ...]


def scan_records(path: Path | str) -> Scan:
    """Read every line of a JSONL file and say of each what it is. Nothing is skipped in silence."""
    path = Path(path)
    records: list[Record] = []
    truncated: list[Problem] = []
    foreign: list[Problem] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw:
            continue
        text = raw.decode("utf-8", errors="replace")
        try:
            records.append(Record.from_json(text))
        except RecordError as error:
            # A killed writer's line begins like one of ours and lacks its end; with both it is damage.
            begun = text.startswith(_LINE_START) or _LINE_START.startswith(text)
            if begun and not _LINE_END.search(text):
                truncated.append(Problem(path, number, "truncated line (its writer was interrupted)"))
            else:
                foreign.append(Problem(path, number, str(error)))
    return Scan(tuple(records), tuple(truncated), tuple(foreign))


def read_records(path: Path | str) -> Scan:
    """As `scan_records`, but foreign or damaged lines are an error that names each of them."""
    scan = scan_records(path)
    if scan.foreign:
        raise RecordError("\n".join(str(problem) for problem in scan.foreign))
    return scan


class RecordWriter:
    """Appends records to a JSONL file; each is on the disk before `append` returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._write(b"\n")  # a killed writer's last line stays apart from the next one

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def append(self, record: Record) -> None:
        """Write one line and force it to the disk."""
        self._write(record.to_json().encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderLocked(RuntimeError):
    """Another run is writing this folder."""


@contextmanager
def lock_folder(folder: Path | str) -> Iterator[Path]:
    """Hold a run folder for one writer. The kernel frees the lock when the process ends, however it ends."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise FolderLocked(f"{folder} is being written by process {owner}; take another folder") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield folder


def remember_environment(folder: Path | str, found: Mapping[str, Any]) -> str:
    """Add an environment to the folder's `environment.json` (by fingerprint) and return its fingerprint.

    A resumed run may go on under another commit or thread count: each record keeps pointing at its own.
    """
    path = Path(folder) / "environment.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    name = str(found["fingerprint"])
    known.setdefault(name, dict(found))
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(known, indent=1) + "\n")
    draft.replace(path)  # whole or not at all
    return name


def _row(record: Record) -> dict[str, Any]:
    case = asdict(record.case)
    shapes, options, schedule = case.pop("shapes"), case.pop("options"), case.pop("schedule")
    timing = record.timing
    return {
        "case_id": record.case_id,
        **case,
        "schedule": None if schedule is None else ",".join(map(str, schedule)),
        **{f"shape_{key}": value for key, value in shapes.items()},
        **{f"option_{key}": value for key, value in options.items()},
        "status": record.status.value,
        "reason": record.reason,
        **asdict(record.derived or Derived(math.nan, math.nan)),
        "baseline": None if timing is None or timing.baseline is None else timing.baseline.name,
        "method": None if timing is None else timing.method,
        "rounds": 0 if timing is None else len(timing.rounds),
        "dropped_rounds": 0 if timing is None else len(timing.dropped),
        **asdict(record.flops),
        **asdict(record.memory),
        **{f"stage_{key}_s": value for key, value in (record.stages_s or {}).items()},
        "environment": record.environment,
        "created": record.created,
    }


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: the case, its status and reason, derived values, FLOPs, memory and stages; no raw
    samples.
    """
    return pd.DataFrame([_row(record) for record in records])
