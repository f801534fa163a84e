"""Records as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...common.text import plain
from .parts import Derived
from .schema import Record

if TYPE_CHECKING:
    import pandas as pd


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
    import pandas as pd  # here: half a second that a worker, or a run that is resumed, need not pay

    return pd.DataFrame([shown(_row(record)) for record in records])


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose texts can be written to any file: what is not to be seen in them is written out."""
    return {key: plain(value, lines=True) if isinstance(value, str) else value for key, value in row.items()}
