"""What was held against the raw samples, and what did not agree."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..harness.record import RECORDS, RecordError

ULPS = 4
"""How far the logarithms and exponentials of two processors may part: numpy has its own for AVX-512."""
LOGARITHMS = ("floor", "delta")
"""Numbers on the log scale: what ratios near one have lost by rounding is a share of one, not of their logarithm."""


def _nearly(name: str, found: float, expected: float) -> bool:
    return abs(found - expected) <= ULPS * math.ulp(1.0 if name in LOGARITHMS else expected)


@dataclass(frozen=True)
class Mismatch:
    """One number that is not what it should be."""

    file: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} is {self.found}, expected {self.expected}"


@dataclass
class Verification:
    """What was held against the raw samples, and what did not agree."""

    values: int = 0
    """Derived numbers computed again."""
    rounded: int = 0
    """Of these, such as part in the last place from another processor's."""
    files: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What was not computed again, with the reason in words -> ids of the records."""
    unfinished: str | None = None
    """What of the folder's plan has no record."""

    @contextmanager
    def reading(self, file: str, expected: str) -> Iterator[None]:
        """A file that cannot be read is a mismatch, and ends what is done inside."""
        try:
            yield
        except RecordError as error:
            self.mismatches.append(Mismatch(file, "the file", str(error), expected))

    def leave_out(self, what: str, reason: str, of: str) -> None:
        """Remember that a number of a record is not computed again, and why."""
        self.left_out.setdefault(f"{what}: {reason}", []).append(of)

    @property
    def left_out_notes(self) -> list[str]:
        """One line for each reason, with the number of records; a single one by its id."""
        return [
            f"not computed again, {ids[0] if len(ids) == 1 else f'{len(ids)} records'}: {why}"
            for why, ids in self.left_out.items()
        ]

    def hold(self, name: str, of: str, found: object, expected: object, *, exact: bool = True) -> None:
        """Count one number of the records and remember it if it is wrong."""
        self.values += 1
        if found == expected:
            return
        floats = isinstance(found, float) and isinstance(expected, float)
        if floats and not exact and _nearly(name, found, expected):  # type: ignore[arg-type]
            self.rounded += 1
            return
        self.mismatches.append(Mismatch(RECORDS, f"{name} of {of}", repr(found), repr(expected)))


def hold_table(
    result: Verification, path: Path, fresh_text: str, named: Callable[[Mapping[str, str]], str]
) -> None:
    """Every cell of a CSV file; columns that an older version did not have may be missing, rows may not.

    `named` is what a row is called, from its fresh cells.
    """
    result.files.append(path.name)
    fresh = list(csv.DictReader(io.StringIO(fresh_text)))
    with path.open(newline="") as file:
        stored = list(csv.DictReader(file))
    if len(stored) != len(fresh):
        result.mismatches.append(Mismatch(path.name, "number of rows", str(len(stored)), str(len(fresh))))
    for row, expected in zip(stored, fresh, strict=False):
        for name, value in row.items():
            result.values += 1
            if value != expected.get(name):
                where = f"{name} of {named(expected)}"
                wanted = repr(expected[name]) if name in expected else "no such column"
                result.mismatches.append(Mismatch(path.name, where, repr(value), wanted))
