"""The result of a comparison: a row a case, with its evidence or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...common.drafts import draft, make_folder
from ..measure.verdicts import Evidence, Judged, Summary, judge, summarise
from .design import Samples


@dataclass(frozen=True)
class Row:
    """One case. `samples` are there where it was measured now, `medians_s` (A, B) where it has a time at all; `judged`
    once the table is whole.
    """

    case_id: str
    title: str
    evidence: Evidence | None = None
    samples: Samples | None = None
    reason: str | None = None
    judged: Judged | None = None
    medians_s: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class VerdictTable:
    """All cases of a comparison of B with A, and what a reader must know before trusting it."""

    a: str
    b: str
    how: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    margin: float = 0.0

    @property
    def judged(self) -> list[Judged]:
        """Of the rows that have a verdict."""
        return [row.judged for row in self.rows if row.judged is not None]

    @property
    def without_result(self) -> int:
        """Rows that could not be compared."""
        return sum(row.judged is None for row in self.rows)

    @property
    def summary(self) -> Summary:
        """Geometric mean and counts."""
        return summarise(self.judged)

    def to_json(self) -> dict[str, Any]:
        """Everything, raw samples too."""
        values = {"schema": "pft_bench.comparison/1", **asdict(self)}
        return {**values, "summary": asdict(self.summary), "without_result": self.without_result}

    def write(self, path: Path) -> None:
        """As JSON."""
        make_folder(path.parent)
        with draft(path) as made:
            made.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def with_verdicts(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with verdicts, corrected for their number."""
    judged = judge({row.case_id: row.evidence for row in rows if row.evidence is not None})
    return tuple(replace(row, judged=judged.get(row.case_id)) for row in rows)
