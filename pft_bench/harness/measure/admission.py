"""Who may be timed: a contender runs its check, then its inputs change one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...common.shortage import out_of_memory
from .contender import Call, Contender, ContenderWork
from .guards import active
from .outcome import broken_law, size_bytes
from .process_state import ProcessChanged, unchanged
from .results import CheckOutcome, Rejection, failures
from .verified import PASSED, REACHED, Verified, WrongResult, flat, retype, same, typed

HELD_BYTES = 256 << 20
"""Earlier results that are held while inputs change one by one, so that memory that is handed out again shows."""


@dataclass(frozen=True)
class Refused:
    """A contender that did not pass, with whatever checks had run."""

    name: str
    checks: tuple[CheckOutcome, ...]
    rejection: Rejection


def rejection_of(error: Exception) -> Rejection:
    """The row's state for an exception: memory exhaustion and a missing op have states of their own."""
    if isinstance(error, WrongResult | ProcessChanged):
        return Rejection("failed", str(error))
    if isinstance(error, NotImplementedError):
        return Rejection("skipped", str(error) or "not implemented")
    return Rejection("oom" if out_of_memory(error) else "error", f"{type(error).__name__}: {error}")


def verify(contender: Contender) -> Verified | Refused:
    """Run the contender's check, then change its inputs one by one. No outcome at all counts as failed; an exception
    becomes a reason.
    """
    checks: tuple[CheckOutcome, ...] = ()
    try:
        contender.prepare()
        with unchanged("during its check", first_call=True):
            with _unreached(contender.work):
                checks = tuple(contender.check(contender.call))
            passed = bool(checks) and all(outcome.passed for outcome in checks)
            if passed and contender.work is not None and active("fresh inputs"):
                with _unreached(contender.work):
                    _step_by_step(contender.call, contender.work)
    except Exception as error:
        return Refused(contender.name, checks, rejection_of(error))
    if not checks:
        return Refused(contender.name, (), Rejection("failed", "the check returned no result"))
    if reason := failures(checks):
        return Refused(contender.name, checks, Rejection("failed", reason))
    return Verified(contender, checks, PASSED)


@contextmanager
def _unreached(work: ContenderWork | None) -> Iterator[None]:
    """WrongResult if what only the harness changes is something else afterwards, the present values left aside."""
    held = () if work is None else work.holds()
    own = typed((work, *flat(held[:-1])))
    yield
    now = () if work is None else work.holds()
    if active("harness state") and not same(typed((work, *flat(now[:-1]))), own):
        retype(own)
        assert work is not None
        work.put_back(held)
        raise WrongResult(REACHED)


def _step_by_step(call: Call, work: ContenderWork) -> None:
    """One input after the other changes: what was remembered of the others is right, of this one wrong.

    The results are held, so that memory that is handed out twice shows.
    """
    held: list[object] = []
    try:
        for changed in work.steps():
            output = call()
            law = broken_law(output, work.inputs(), held)
            if law:
                raise WrongResult(law)
            if active("results judged") and (told := failures(work.judge(output))):
                raise WrongResult(f"wrong after {changed} changed, the other inputs being as before: {told}")
            held.append(output)
            if sum(map(size_bytes, held)) > HELD_BYTES:
                held = held[-2:]
    finally:
        work.restore()
