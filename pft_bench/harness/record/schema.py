"""A record: the result of one case, as one line of JSON.

A `Record` cannot be built in a state that says nothing or contradicts itself: only a passed check goes with a
time, and whatever else happened carries its reason. Raw samples are stored; what is derived from them
(`derive`) is stored too, and can always be computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

from pft_bench.harness.measure.results import CheckOutcome, DroppedRound, RoundsResult
from pft_bench.harness.measure.roof import Roof
from pft_bench.harness.measure.verdicts import Verdict

from .parts import (
    Baseline,
    Case,
    CheckEntry,
    Derived,
    Flops,
    Memory,
    RecordError,
    Status,
    Timing,
    derive,
    require,
    seal,
)

SCHEMA = "pft_bench.record/1"

NO_ARITHMETIC = ("row_reads",)
"""Contenders that are drawn under the roof of a problem whose arithmetic they do not do."""


@dataclass(frozen=True)
class Record:
    """One case's result. Build it with `Record.ok`, `Record.failed` or `Record.without_result`.

    `environment` is the fingerprint of an entry in the run folder's `environment.json`.
    """

    case: Case
    status: Status
    environment: str
    reason: str | None = None
    checks: tuple[CheckEntry, ...] = ()
    timing: Timing | None = None
    derived: Derived | None = None
    stages_s: Mapping[str, float] | None = None
    flops: Flops = field(default_factory=Flops)
    memory: Memory = field(default_factory=Memory)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        require(bool(self.environment), "a record needs the fingerprint of its environment")
        if self.status is Status.OK:
            require(bool(self.checks), "status ok needs check results")
            require(all(check.passed for check in self.checks), "status ok with a check that did not pass")
            require(self.reason is None, "status ok carries no reason")
        else:
            require(bool(self.reason), f"status {self.status.value} needs a reason")
            timed = self.timing is not None or self.stages_s is not None
            require(not timed, f"status {self.status.value} carries no time")
            measured = (self.memory.peak_allocated_bytes, self.memory.peak_process_bytes)
            require(measured == (None, None), f"status {self.status.value} carries no measured memory")
        require((self.timing is None) == (self.derived is None), "timing and derived values go together")
        if self.stages_s is not None:
            object.__setattr__(self, "stages_s", dict(self.stages_s))
            sound = all(math.isfinite(value) and value >= 0 for value in self.stages_s.values())
            require(sound, "stages_s must be seconds, none negative")

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
            checks=tuple(CheckEntry.of(check) for check in checks),
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
            checks=tuple(CheckEntry.of(check) for check in checks),
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
        """The record of contender `name` of a measurement: its times, or the reason why it has none."""
        found = result.contenders[name]
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

    def under(self, roof: Roof | None) -> Self:
        """The record, or one without a time if it beats the roof of its run.

        Reads alone (`row_reads`) do none of the arithmetic that they are drawn under.
        """
        reason = self.beyond(roof)
        if reason is None:
            return self
        assert self.derived is not None
        return self.rejected(Status.IMPLAUSIBLE, f"{self.derived.median_s:.3g} s: {reason}")

    def rejected(self, status: Status, reason: str) -> Self:
        """The record without its measurements; `reason` follows one that it has already."""
        return replace(
            self,
            status=status if self.status is Status.OK else self.status,
            reason=reason if self.reason is None else f"{self.reason}; {reason}",
            timing=None,
            derived=None,
            stages_s=None,
            memory=Memory(predicted_peak_bytes=self.memory.predicted_peak_bytes),
        )

    def beyond(self, roof: Roof | None) -> str | None:
        """Why the time cannot be, given the roof of its run; None where it can."""
        if roof is None or self.derived is None or self.case.backend in NO_ARITHMETIC:
            return None
        if self.case.device == "cpu" and self.case.dtype in ("float16", "bfloat16"):
            return (
                None  # kernels may compute in float32, which is faster here than a product in half precision
            )
        return roof.beyond(self.flops.kernel_flops, self.flops.kernel_bytes, self.derived.median_s)

    def to_json(self, *, sealed: bool = True) -> str:
        """One line, without its newline. The schema comes first, so that even a cut line tells what it
        was; a seal of all the rest comes last (not for the line of an older version that had none).
        """
        values = {"schema": SCHEMA, "case_id": self.case_id, **asdict(self)}
        if sealed:
            values["seal"] = seal(values)
        return json.dumps(values, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The record of a line; RecordError names what is wrong with any other line."""
        try:
            values = json.loads(line, parse_constant=_no_constant)
        except ValueError as error:
            raise RecordError(f"not JSON: {error}") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        require(schema == SCHEMA, f"schema {schema!r}, this version reads {SCHEMA!r}")
        if "seal" in values:
            written, fresh = values.pop("seal"), seal(values)
            require(
                written == fresh,
                f"the line was changed after it was written: its seal is {written!r}, its content has {fresh!r}",
            )
        try:
            record: Self = _record_of(cls, values)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"invalid record: {error}") from None
        require(
            record.case_id == values["case_id"],
            f"case_id {values['case_id']} does not belong to its case ({record.case_id})",
        )
        return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def timing_of(result: RoundsResult, name: str) -> Timing:
    """The raw samples of one contender with those of the baseline from the same rounds."""
    found, base = result.contenders[name], result.contenders[result.baseline]
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
    require(set(values) == known, f"{kind.__name__} lacks or adds {sorted(set(values) ^ known)}")
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
        checks=tuple(_build(CheckEntry, check) for check in body["checks"]),
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
