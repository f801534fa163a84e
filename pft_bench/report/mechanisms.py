"""Attention mechanisms: seconds to decide and to use against kept tokens, as rows and as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..harness.record import Record
from ..harness.record.yardsticks import BASELINE
from . import words
from .series import KEPT, Figure, Point, Series, setting_text

PARTS = ("decide", "use")
"""Names of the operators in records: what a mechanism's time is made of."""


@dataclass(frozen=True)
class MechanismRow:
    """A mechanism at one number of kept tokens."""

    name: str
    k: int
    decide_s: float
    use_s: float
    dense_s: float
    """Dense attention in the same rounds."""
    record: Record
    """That of the use."""

    @property
    def both_s(self) -> float:
        """Deciding and using."""
        return self.decide_s + self.use_s


def mechanism_rows(records: Sequence[Record]) -> list[MechanismRow]:
    """A row for each mechanism and K whose parts were all measured, dense first; none where dense was not."""
    parts: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        case = record.case
        if case.op in PARTS and case.level == "op" and case.k is not None and record.derived:
            parts.setdefault((case.backend, case.k), {})[case.op] = record
    found = []
    dense = next(
        (both["use"] for (name, _), both in parts.items() if name == BASELINE and "use" in both), None
    )
    if dense is None or dense.derived is None:
        return []
    alone = {
        name for name, _ in parts if not any("decide" in both for (n, _), both in parts.items() if n == name)
    }
    for (name, k), both in sorted(parts.items(), key=lambda item: (item[0][0] != BASELINE, *item[0])):
        use, decide = both.get("use"), both.get("decide")
        if use is None or use.derived is None or (decide is None and name not in alone):
            continue
        decide_s = decide.derived.median_s if decide is not None and decide.derived is not None else 0.0
        found.append(MechanismRow(name, k, decide_s, use.derived.median_s, dense.derived.median_s, use))
    return found


def mechanism_figure(records: Sequence[Record]) -> Figure | None:
    """Deciding and using together against kept tokens, a line for each mechanism; hollow is deciding alone."""
    rows = mechanism_rows(records)
    kept = [row.k for row in rows if row.decide_s]
    if not kept:
        return None
    series = []
    for name in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == name]
        if not any(row.decide_s for row in own):  # all tokens, whatever others keep
            points = [Point(own[0].record, x, own[0].both_s) for x in (min(kept), own[0].k)]
        else:
            points = [Point(row.record, row.k, row.both_s) for row in own]
            points += [Point(row.record, row.k, row.decide_s, hollow=True, part="deciding") for row in own]
        series.append(Series(name, tuple(points)))
    setting = setting_text(rows[0].record)
    return Figure(
        "mechanisms",
        "curves",
        "Deciding which tokens matter, and using them",
        "Joined: deciding and using, medians of the same rounds added. Hollow: deciding alone. Dense and "
        f"rank-factorized attention use all tokens. {setting}.",
        KEPT,
        "time of a layer's attention",
        tuple(series),
        words.whole,
        words.seconds,
        setting=setting,
        hollow="deciding alone",
    )
