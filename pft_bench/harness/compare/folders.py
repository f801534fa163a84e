"""Two recorded runs against each other, by what both measured next to the same baseline.

Samples of two runs are not paired, and the machine may have been another one that day, though it has the same name. So
what is compared is each case's time over the baseline's time of the same rounds: `ln(t / t_base)` of one run against
that of the other, by ranks. The floor is the larger of the two runs' A/A' floors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.text import Lines
from ..measure.statistics import control_floor, hodges_lehmann_shift, log_ratios, median
from ..measure.verdicts import MARGIN, Evidence, unpaired
from ..record import Record, RunFolder
from .table import Row, VerdictTable, with_verdicts

CLOCK_TOLERANCE = 0.03
ONE_PROCESS = (
    "recorded runs are one process each, at two times: what differs from process to process is not in the interval; "
    "to act on a difference, measure it interleaved (--baseline REV, --backends A,B)"
)


def clocks(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the clocks: of the processor then, and the GPU's limits."""
    cpu, gpu = environment.get("cpu") or {}, environment.get("gpu") or {}
    now = environment.get("now") or {}
    return {
        "governor": cpu.get("governor"),
        "MHz": now.get("cpu_mhz"),
        "GPU clock limits": gpu.get("max_clocks"),
    }


def obstacles(a: RunFolder, b: RunFolder, one: Record, other: Record) -> list[str]:
    """Why two records of one case must not be compared: other device, method, threads or clock."""
    found = []
    before, after = a.environment(one), b.environment(other)
    if not before or not after:
        found.append("an environment is missing")
    elif before.get("machine") != after.get("machine"):
        names = [
            (item.get("gpu") or item.get("cpu") or {}).get("name" if item.get("gpu") else "model")
            for item in (before, after)
        ]
        found.append(
            f"devices differ: {names[0]} ({before.get('machine')}), {names[1]} ({after.get('machine')})"
        )
    if one.timing is not None and other.timing is not None and one.timing.method != other.timing.method:
        found.append(f"methods differ: {one.timing.method}, {other.timing.method}")
    for name, clock in clocks(before).items():
        now = clocks(after)[name]
        if isinstance(clock, int | float) and isinstance(now, int | float):
            if abs(clock - now) > CLOCK_TOLERANCE * clock:
                found.append(f"clocks differ: {clock} and {now} {name}")
        elif clock != now:
            found.append(f"clocks differ: {name} {clock}, {now}")
    return found


def _row(a: RunFolder, b: RunFolder, case_id: str, margin: float) -> Row:
    one, other = a.by_case.get(case_id), b.by_case.get(case_id)
    known = one or other
    assert known is not None
    title = describe(known)
    medians_s = _median_s(one), _median_s(other)
    for run, record in ((a, one), (b, other)):
        if record is None:
            return Row(case_id, title, reason=f"not in {run.path}", medians_s=medians_s)
        if record.timing is None:
            reason = f"{record.status.value} in {run.path}: {record.reason}"
            return Row(case_id, title, reason=reason, medians_s=medians_s)
    assert one is not None
    assert other is not None
    return Row(case_id, title, evidence=between(one, other, margin), medians_s=medians_s)


def _median_s(record: Record | None) -> float | None:
    return None if record is None or record.timing is None else median(record.timing.samples_s)


def between(one: Record, other: Record, margin: float = MARGIN) -> Evidence:
    """Evidence on two timed records of one case, relative to a baseline that both ran next to."""
    relative, floors = [], [0.0]
    for record in (one, other):
        assert record.timing is not None
        base = record.timing.baseline
        assert base is not None
        relative.append(log_ratios(record.timing.samples_s, base.samples_s))
        if base.control_s:
            floors.append(control_floor(base.control_s, base.samples_s))
    return unpaired(relative[0], relative[1], max(floors), margin)


def describe(record: Record) -> str:
    """A case in a few words."""
    case = record.case
    kept = f" K={case.k}" if case.k is not None else ""
    candidates = case.shapes.get("candidates")
    step = f" {candidates} -> {case.k}" if candidates is not None else kept
    schedule = "" if case.schedule is None else " " + ",".join(map(str, dict.fromkeys(case.schedule)))
    threads = f", {case.threads} threads against 1" if case.level == "threads" else ""
    against = f", against {case.options['against']}" if "against" in case.options else ""
    return f"{case.options.get('system', case.op)}{step}{schedule}, {case.backend}{threads}{against}"


def compare_folders(a: Path, b: Path, *, margin: float = MARGIN, force: bool = False) -> VerdictTable:
    """Run B against run A on every case that either has.

    Raises:
        ValueError: devices, methods or clocks differ, or no baseline is common, and `force` was not given.
    """
    first, second = RunFolder.read(a), RunFolder.read(b)
    rows: list[Row] = []
    forced: dict[str, None] = {}
    drifts = []
    for case_id in dict.fromkeys([*first.by_case, *second.by_case]):
        one, other = first.by_case.get(case_id), second.by_case.get(case_id)
        if one is not None and other is not None and one.timing is not None and other.timing is not None:
            forced |= dict.fromkeys(obstacles(first, second, one, other))
            base_a, base_b = one.timing.baseline, other.timing.baseline
            if base_a is None and base_b is None:
                moved = hodges_lehmann_shift(log_seconds(one), log_seconds(other)).estimate
                drifts.append(f"{describe(one)} {moved:+.1%}")
                continue  # the yardstick itself
            if base_a is None or base_b is None or base_a.name != base_b.name:
                why = "the two runs have no baseline in common"
                medians_s = _median_s(one), _median_s(other)
                rows.append(Row(case_id, describe(one), reason=why, medians_s=medians_s))
                continue
        rows.append(_row(first, second, case_id, margin))
    if forced and not force:
        raise ValueError(
            Lines.of(
                "these runs cannot be compared (--force does it all the same, and says so):",
                *(f"  {text}" for text in forced),
            )
        )
    warnings = [*_sameness(first, second), ONE_PROCESS]
    if drifts:
        warnings.append("between the runs the baseline itself moved: " + ", ".join(drifts))
    torches = {
        str((environment.get("libraries") or {}).get("torch"))
        for run in (first, second)
        for environment in run.environments.values()
    }
    if len(torches) > 1:
        warnings.append(f"the baseline ran on different versions of PyTorch: {', '.join(sorted(torches))}")
    labels = [f"{run.path} ({run.commit})" for run in (first, second)]
    how = "recorded runs: B / A compares times relative to the baseline of their own run, not the times beside it"
    return VerdictTable(
        labels[0], labels[1], how, with_verdicts(rows), tuple(warnings), tuple(forced), margin
    )


def _sameness(first: RunFolder, second: RunFolder) -> list[str]:
    """Records that are the very same in both: then one was copied, and their agreement says nothing."""
    every = {*first.by_case, *second.by_case}
    same = sum(first.by_case.get(case_id) == second.by_case.get(case_id) for case_id in every)
    if same == len(every):
        return [
            "the two runs are identical: the same records, so one is a copy of the other and nothing is compared"
        ]
    return [f"{same} of {len(every)} records are the same in both: they were copied"] if same else []


def log_seconds(record: Record) -> list[float]:
    """ln of the raw seconds."""
    assert record.timing is not None
    return [math.log(value) for value in record.timing.samples_s]
