"""What may be timed: only a callable whose own check has passed in this process.

`verify` is the one way to a `Verified` callable, and the timers take nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..shortage import out_of_memory

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
    """Most candidates run in the process as they find it."""


@dataclass(frozen=True)
class Candidate:
    """A named callable and the check it must pass before it is timed.

    `check` gets the very callable that will be timed. `rotations` are equivalent callables on other buffers
    of the same shapes, for the graph timer (kernels so short that their inputs would stay in the cache).
    `prepare` is called before the check, the warm-up and each sample, outside of what is timed: it brings the process
    into the state in which this candidate runs, such as its number of threads.
    """

    name: str
    call: Call
    check: Check
    rotations: Sequence[Call] = ()
    prepare: Call = _as_it_is


@dataclass(frozen=True)
class Rejection:
    """Why a candidate has no time: a check that did not pass, an exception, what ended its process, or that it does
    without what the case needs.
    """

    status: Literal["failed", "error", "oom", "crashed", "timeout", "skipped"]
    reason: str


_PASSED = object()


class Verified:
    """A candidate that passed its checks. Not to be built by hand: `verify` does."""

    def __init__(self, candidate: Candidate, checks: tuple[CheckOutcome, ...], token: object) -> None:
        if token is not _PASSED:
            raise TypeError("Verified comes from verify(candidate) only: nothing unchecked is timed")
        self.name = candidate.name
        self.call = candidate.call
        self.prepare = candidate.prepare
        self.rotations = (candidate.call, *candidate.rotations)
        self.checks = checks


@dataclass(frozen=True)
class Refused:
    """A candidate that did not pass, with whatever checks had run."""

    name: str
    checks: tuple[CheckOutcome, ...]
    rejection: Rejection


def rejection_of(error: Exception) -> Rejection:
    """The row's state for an exception: memory exhaustion, and what a backend does without, apart from all else."""
    if isinstance(error, NotImplementedError):
        return Rejection("skipped", str(error) or "not implemented")
    return Rejection("oom" if out_of_memory(error) else "error", f"{type(error).__name__}: {error}")


def verify(candidate: Candidate) -> Verified | Refused:
    """Run the candidate's check. No outcome at all counts as failed; an exception becomes a reason."""
    try:
        candidate.prepare()
        checks = tuple(candidate.check(candidate.call))
    except Exception as error:
        return Refused(candidate.name, (), rejection_of(error))
    if not checks:
        return Refused(candidate.name, (), Rejection("failed", "the check returned no result"))
    bad = [outcome for outcome in checks if not outcome.passed]
    if bad:
        reason = "; ".join(f"{outcome.name}: {outcome.detail or 'failed'}" for outcome in bad)
        return Refused(candidate.name, checks, Rejection("failed", reason))
    return Verified(candidate, checks, _PASSED)
