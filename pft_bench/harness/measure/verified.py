"""What may be timed: only a callable whose own check has passed in this process, and whose timed results are right.

`admission.verify` is the one way to a `Verified` callable, and the timers take nothing else. Every timed
sample is taken inside of `Verified.sample`; a timer calls `Verified.renew` before a call and `Verified.returned` after
it, both outside of what is timed (docs/method.md, A time belongs to outputs that were right).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter, is_
from typing import Any, NamedTuple

from ...common import entropy
from .contender import Contender, ContenderWork
from .guards import active
from .outcome import Remembered, broken_law, spoiled
from .process_state import (
    Snapshot,
    end_if_forked,
    listeners,
    running_threads,
    signal_handlers,
    started,
    unchanged,
)
from .results import CheckOutcome, failures

JUDGED = 1.0
"""Probability with which one call of a sample is judged. One of the first sample is, and the last call of all."""

JUDGED_COSTLY = 0.25
"""The same of gradients, for which a look takes a whole window-head."""

JUDGED_DEAR = 0.05
"""The same where a reference costs as much as a call of the baseline."""

UNSEEN_NS = 2000
"""What may pass between the timer's clock and the one that goes besides, where nothing interrupts."""

LEAST_TIMED = 0.9
"""Part of what the shortest call took by that clock that a call must take on average by the timer."""

REACHED = "the call reached into the harness: its state is not what it was before (restored)"

BETWEEN = "between the calls of a timed sample"

CHANGED = "the result changed after the call had returned it"


class WrongResult(Exception):
    """A timed call returned what is not right, so that none of its times counts."""


class State(NamedTuple):
    """The harness's own objects around a call, held here so that no other one gets the address of one that is gone;
    what its work holds, and the threads that run.
    """

    own: tuple[object, ...]
    work: ContenderWork | None
    held: tuple[object, ...]
    threads: tuple[frozenset[int], int]
    listeners: tuple[object, ...]
    process: int
    at_ns: int


def flat(items: Iterable[object]) -> Iterator[object]:
    """Pairs are made anew when a dictionary is asked for them: what is in them counts."""
    for item in items:
        if isinstance(item, tuple):
            yield from item
        else:
            yield item


def same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether these are the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def typed(items: tuple[object, ...]) -> tuple[object, ...]:
    """The items, then the type of each: a contender may change the type of an object in place."""
    return *items, *map(type, items)


def retype(own: tuple[object, ...]) -> None:
    """Restore the type of each item of what `typed` returned."""
    half = len(own) // 2
    for item, kind in zip(own[:half], own[half:], strict=True):
        if type(item) is not kind:
            _set_type(item, kind)


_set_type: Any = vars(object)["__class__"].__set__  # an object's own `__class__` may lie

PASSED = object()
"""What `verify` gives to `Verified`, and nobody else."""

_now_ns, _getpid = time.perf_counter_ns, os.getpid
"""This module's own references, as the timer has one."""


class Verified:
    """A contender that passed its checks. Not to be built by hand: `admission.verify` does.

    It has slots, so that no method of it can be hidden by an attribute.
    """

    __slots__ = (
        "__weakref__",
        "_calls",
        "_done",
        "_drawn",
        "_draws",
        "_held",
        "_looked",
        "_looks_next",
        "_process",
        "_quiet",
        "_seen",
        "_shortest_ns",
        "_timed_ns",
        "_turn",
        "_work",
        "call",
        "checks",
        "judged",
        "name",
        "prepare",
    )

    def __init__(self, contender: Contender, checks: tuple[CheckOutcome, ...], token: object) -> None:
        if token is not PASSED:
            raise TypeError("Verified comes from verify(contender) only: nothing unchecked is timed")
        self.name = contender.name
        self.call = contender.call
        self.prepare = contender.prepare
        self.checks = checks
        self._work = contender.work if active("fresh inputs") else None
        self._drawn: object = None
        self._turn: object = None
        self._calls = self._done = self._draws = 0
        self._looked = self._looks_next = False
        self._quiet: tuple[object, ...] = ()
        self._shortest_ns = self._timed_ns = self._seen = 0
        self._held: tuple[object, Remembered, object] | None = None
        self._process: Snapshot | None = None
        self.judged = 0
        """Results of timed calls that were held against what their inputs must give."""

    @property
    def changes(self) -> bool:
        """Whether its inputs change between calls: then calls are timed one by one."""
        return self._work is not None

    def parts(self) -> tuple[object, ...]:
        """All that it holds: nobody changes that while another one runs."""
        return _PARTS(self)

    def put_back(self, parts: Sequence[object]) -> None:
        """What `parts` gave before somebody changed it."""
        for name, value in zip(_SLOTS, parts, strict=True):
            setattr(self, name, value)

    def state(self) -> State:
        """What nobody but the harness changes: a call that reached for it shows."""
        held = () if self._work is None else self._work.holds()
        evidence = () if self._work is None else self._work.evidence()
        kept = () if self._process is None else self._process.parts()
        own = typed((*self.parts(), *flat(held), *flat(evidence), *kept))
        return State(own, self._work, held, running_threads(), listeners(), _getpid(), _now_ns())

    @contextmanager
    def sample(self, turn: object, calls: int) -> Iterator[None]:
        """A sample of so many timed calls: the last result must still be what it was, and the process stay as it is.

        Raises:
            WrongResult: the result of the sample before has changed.
            ProcessChanged: the process has.
        """
        self._settle()
        self._turn, self._calls, self._done, self._draws, self._looked = turn, calls, 0, 0, False
        if self._work is not None:
            self._work.begin()
        self._looks_next = False
        with unchanged("during a timed sample") as self._process:
            self._quiet = *listeners(), *signal_handlers()
            yield
        self._process = None
        self._calls = 0

    def renew(self) -> None:
        """New values for the inputs, before a call."""
        if self._work is not None:
            self._held = None  # its memory may be had again
            self._require_quiet()
            self._draws += 1
            last = self._calls - self._done == 1
            self._drawn = self._work.renew((self._turn, "last" if last else self._draws))

    def _require_quiet(self) -> None:
        """ProcessChanged if the kernel left code that could run while inputs change. Its last result is freed now, so
        its finalisers have run.
        """
        if self._process is None:
            return  # a warm-up
        looks, self._looks_next = self._looks_next, False
        quiet = (*listeners(), *signal_handlers()) == self._quiet
        if looks or not quiet or started(self._process.threads, running_threads()):
            self._process.require(BETWEEN)

    def returned(self, output: object, before: State) -> None:
        """A timed call returned, `before` it the `state` was that; outside of what is timed.

        Only now is it drawn whether the result is judged: nothing tells the call beforehand.
        """
        work, ended_ns = self._work, _now_ns()
        if work is None:
            return
        now = self.unreached(before)
        if not self._calls:
            return  # a warm-up
        took_ns = ended_ns - before.at_ns
        self._shortest_ns = min(took_ns, self._shortest_ns) if self._seen else took_ns
        self._seen += 1
        if active("threads"):
            self._require(
                not started(before.threads, now.threads),
                "the call returned with threads running that it had started",
            )
        left = max(1, self._calls - self._done)
        judge, first = self._drawn_to_be_judged(work), not self.judged
        self._done += 1
        if not judge and left > 1:
            return
        law = broken_law(output, work.inputs(), ())
        self._require(not law, law)
        seen = Remembered(output)
        if judge:
            self._judge(work, output, "right after a timed call", whole=first)
            self._require(seen.same(), CHANGED)
            if left > 1 and self._process is not None:
                now_too = first or entropy.chance(0.5)
                self._looks_next = first or not now_too
                if now_too:
                    self._process.require(BETWEEN)
        if left > 1 or first:
            self._call_again(work, output, seen)
        if left > 1:
            return
        self._hold(work.glance(), "after a timed sample")
        work.returned(output, self._drawn)
        self._held = output, seen, self._drawn

    def unreached(self, before: State) -> State:
        """The state now. WrongResult if a call reached for it, ProcessChanged if it left what runs between calls."""
        end_if_forked(before.process)
        now = self.state()
        if active("harness state") and not same(now.own, before.own):
            retype(before.own)
            if before.work is not None:
                before.work.put_back(before.held)
            raise WrongResult(REACHED)
        if now.listeners != before.listeners and active("process state") and self._process is not None:
            self._process.require(BETWEEN)
        return now

    def _drawn_to_be_judged(self, work: ContenderWork) -> bool:
        """One call of a sample at most, each with the same probability."""
        often = JUDGED_DEAR if work.dear else JUDGED_COSTLY if work.costly else JUDGED
        if not self.judged:
            often = 1.0
        if self._looked:
            return False
        self._looked = entropy.chance(often / max(often, self._calls - often * self._done))
        return self._looked

    def took(self, seconds: float) -> None:
        """What the timer says that the sample took. The clock that goes besides must agree, after the last sample."""
        self._timed_ns += round(seconds * 1e9)

    def _clocks_agree(self) -> bool:
        """Whether calls took no less on average, by the timer, than the shortest did by the clock besides: what
        interrupts a call, or comes between the clocks, cannot break it.
        """
        least_ns = LEAST_TIMED * self._seen * (self._shortest_ns - UNSEEN_NS)
        return not self._timed_ns or self._timed_ns >= least_ns or not active("clocks agree")

    def _call_again(self, work: ContenderWork, output: object, seen: Remembered) -> None:
        """One more call, not timed, while somebody still holds the result."""
        if work.dear:
            return
        self._draws += 1
        work.renew((self._turn, self._draws))
        before = self.state()
        again = self.call()
        self.unreached(before)
        law = broken_law(again, work.inputs(), [output])
        self._require(not law, law)
        self._require(seen.same(), CHANGED)

    def finish(self) -> None:
        """After the last sample: its last result must still be there, and be right, and a wrong one must fail."""
        self._settle()
        if self._work is not None:
            self._require(self._clocks_agree(), "its calls took longer than the timer says, by another clock")
            with unchanged("after the last timed sample"):
                self._look_at_the_last(self._work)

    def _look_at_the_last(self, work: ContenderWork) -> None:
        self._require(self._held is not None, "no result of a timed call was held")
        assert self._held is not None
        output, seen, drawn = self._held
        work.recall(drawn)
        self._judge(work, output, "the last timed call")
        if active("results judged") and active("judge tried"):
            passed = all(item.passed for item in work.judge(spoiled(output)))
            self._require(
                not passed, "a result that was spoiled on purpose passes: something replaced what judges it"
            )
        self._held = None
        self._call_again(work, output, seen)

    def release(self) -> None:
        """Forget the last result, and give the inputs their first values back."""
        self._held = None
        if self._work is not None:
            self._work.restore()

    def _settle(self) -> None:
        if self._held is None:
            return
        output, seen, drawn = self._held
        self._require(seen.same(), CHANGED)
        if self._work is not None and active("results judged"):
            self._hold(self._work.settle(output, drawn), "the last call of a sample")

    def _judge(self, work: ContenderWork, output: object, when: str, *, whole: bool = True) -> None:
        if active("results judged"):
            self._hold(work.judge(output, whole=whole), when)
            self.judged += 1

    def _hold(self, found: Sequence[CheckOutcome], when: str) -> None:
        told = failures(found)
        self._require(not told, f"{when}: {told}")

    @staticmethod
    def _require(holds: bool, reason: str) -> None:
        if not holds:
            raise WrongResult(reason)


_SLOTS = tuple(name for name in Verified.__slots__ if name != "__weakref__")
_PARTS = attrgetter(*_SLOTS)
