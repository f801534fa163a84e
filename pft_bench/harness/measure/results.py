"""What a measurement says: plain data, which records keep. Who reads records loads neither PyTorch nor a contender."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol


class CheckOutcome(Protocol):
    """One check's result, as far as measuring needs to know it."""

    @property
    def name(self) -> str:
        """What was checked."""

    @property
    def passed(self) -> bool:
        """Whether it held."""

    @property
    def detail(self) -> str:
        """Numbers behind it, or why it failed; may be empty."""


def failures(outcomes: Iterable[CheckOutcome]) -> str:
    """What did not hold and why, in words; empty where all did."""
    return "; ".join(f"{item.name}: {item.detail or 'failed'}" for item in outcomes if not item.passed)


@dataclass(frozen=True)
class Rejection:
    """Why a contender has no time: a check that did not pass, an exception, what ended its process, or that it does
    without what the case needs.
    """

    status: Literal["failed", "error", "oom", "crashed", "timeout", "skipped"]
    reason: str


@dataclass(frozen=True)
class DroppedRound:
    """A round not counted, and the outside evidence against it."""

    round: int
    reason: str


@dataclass(frozen=True)
class ContenderResult:
    """One contender: raw seconds a call, one value per kept round, or the reason why there are none."""

    name: str
    checks: tuple[CheckOutcome, ...]
    repeats: int
    samples_s: tuple[float, ...]
    rejection: Rejection | None = None


@dataclass(frozen=True)
class RoundsResult:
    """All raw samples of one interleaved measurement. `control_s` is A', the baseline's second run."""

    method: str
    baseline: str
    contenders: dict[str, ContenderResult]
    control_s: tuple[float, ...]
    rounds: tuple[int, ...]
    dropped: tuple[DroppedRound, ...]
    order_seed: int
    stop_reason: str
    elapsed_s: float
