"""What may be timed: only a callable whose own check has passed in this process.

`verify` is the one way to a `Verified` callable, and the timers take nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...common.shortage import out_of_memory

Call = Callable[[], object]


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


Check = Callable[[Call], Sequence[CheckOutcome]]


def _as_it_is() -> None:
    """Most contenders run in the process as they find it."""


@dataclass(frozen=True)
class Contender:
    """A named callable and the check it must pass before it is timed.

    `check` gets the very callable that will be timed.
    `prepare` is called before the check, the warm-up and each sample, outside of what is timed: it brings the process
    into the state in which this contender runs, such as its number of threads.
    """

    name: str
    call: Call
    check: Check
    prepare: Call = _as_it_is


@dataclass(frozen=True)
class Rejection:
    """Why a contender has no time: a check that did not pass, an exception, what ended its process, or that it does
    without what the case needs.
    """

    status: Literal["failed", "error", "oom", "crashed", "timeout", "skipped"]
    reason: str


_PASSED = object()


class Verified:
    """A contender that passed its checks. Not to be built by hand: `verify` does."""

    def __init__(self, contender: Contender, checks: tuple[CheckOutcome, ...], token: object) -> None:
        if token is not _PASSED:
            raise TypeError("Verified comes from verify(contender) only: nothing unchecked is timed")
        self.name = contender.name
        self.call = contender.call
        self.prepare = contender.prepare
        self.checks = checks


@dataclass(frozen=True)
class Refused:
    """A contender that did not pass, with whatever checks had run."""

    name: str
    checks: tuple[CheckOutcome, ...]
    rejection: Rejection


def rejection_of(error: Exception) -> Rejection:
    """The row's state for an exception: memory exhaustion and a missing op have states of their own."""
    if isinstance(error, NotImplementedError):
        return Rejection("skipped", str(error) or "not implemented")
    return Rejection("oom" if out_of_memory(error) else "error", f"{type(error).__name__}: {error}")


def verify(contender: Contender) -> Verified | Refused:
    """Run the contender's check. No outcome at all counts as failed; an exception becomes a reason."""
    try:
        contender.prepare()
        checks = tuple(contender.check(contender.call))
    except Exception as error:
        return Refused(contender.name, (), rejection_of(error))
    if not checks:
        return Refused(contender.name, (), Rejection("failed", "the check returned no result"))
    bad = [outcome for outcome in checks if not outcome.passed]
    if bad:
        reason = "; ".join(f"{outcome.name}: {outcome.detail or 'failed'}" for outcome in bad)
        return Refused(contender.name, checks, Rejection("failed", reason))
    return Verified(contender, checks, _PASSED)
