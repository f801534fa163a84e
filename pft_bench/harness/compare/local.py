"""A, B and A' in this process: each side gets its own inputs, passes its own check, and is timed by the same timer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from ..measure.admission import Refused, rejection_of, verify
from ..measure.audit import require_sound
from ..measure.contender import Contender
from ..measure.process_state import holding_functions
from ..measure.results import Rejection
from ..measure.rounds import quiet_collector
from ..measure.timer import CpuTimer, Timer, untimed
from ..measure.verified import Verified
from .design import BLOCK_S, Sampler


class NotComparable(RuntimeError):
    """A side of a comparison that has no time: its check failed, or it raised."""

    def __init__(self, side: str, rejection: Rejection) -> None:
        super().__init__(f"{side}: {rejection.status}: {rejection.reason}")
        self.rejection = rejection


class LocalSampler:
    """Verified callables, one a side, and the timer of all of them."""

    def __init__(self, subjects: Mapping[str, Verified], timer: Timer) -> None:
        self.subjects, self.timer = subjects, timer
        self.repeats: dict[str, int] = {}
        self._slots = 0
        for side, subject in subjects.items():
            timer.warm_up(subject)
            self.repeats[side] = timer.calibrate(subject)

    def block_s(self, side: str) -> float:
        """Seconds of a timed block: the fastest of ten, or of those that fit in 0.1 s."""
        subject, repeats = self.subjects[side], self.repeats[side]
        fastest, started = math.inf, time.perf_counter()
        for _ in range(10):
            fastest = min(fastest, repeats * self.timer.sample_s(subject, repeats))
            if time.perf_counter() - started > 0.1:
                break
        return fastest

    def sample_s(self, side: str, blocks: int) -> list[float]:
        """The timed blocks of one slot; the untimed call before them brings the side's data back to the caches."""
        subject, repeats = self.subjects[side], self.repeats[side]
        self._slots += 1
        with _told_of(side), subject.sample(self._slots, blocks * repeats):
            untimed(subject)
            seconds = [self.timer.sample_s(subject, repeats) for _ in range(blocks)]
        if isinstance(self.timer, CpuTimer):  # that of a GPU goes on the device
            subject.took(sum(seconds) * repeats)
        return seconds

    def finish(self) -> None:
        """The last result of each side, held against what its inputs must give."""
        for side, subject in self.subjects.items():
            with _told_of(side):
                subject.finish()


@contextmanager
def _told_of(side: str) -> Iterator[None]:
    """An exception, or a result that is not right, is why a side has no time."""
    try:
        yield
    except Exception as error:
        raise NotComparable(side, rejection_of(error)) from error


def checked(side: str, contender: Contender) -> Verified:
    """The contender if its check passes; NotComparable otherwise."""
    found = verify(contender)
    if isinstance(found, Refused):
        raise NotComparable(side, found.rejection)
    return found


def local_layout(
    build: Callable[[str], Contender], timer: Callable[[], Timer] = lambda: CpuTimer(BLOCK_S)
) -> Callable[[int], AbstractContextManager[Sampler]]:
    """Layouts in this process; `build(side)` makes a side's contender with inputs of its own."""

    @contextmanager
    def layout(number: int) -> Iterator[Sampler]:
        # Built anew in another order each time: what is allocated first lies elsewhere than what comes last.
        sides = ["A", "B", "A'"]
        sides = sides[number % 3 :] + sides[: number % 3]
        with holding_functions():
            subjects = {side: checked(side, build(side)) for side in sides}
            chosen = timer()
            require_sound(chosen)
            with quiet_collector():
                sampler = LocalSampler(subjects, chosen)
                yield sampler
                sampler.finish()

    return layout
