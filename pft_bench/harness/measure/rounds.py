"""The interleaved design: every contender once a round in random order, the baseline twice (A and A').

Rounds are added on the width of the interval alone, never on what the verdict would be, and samples are never
dropped by value: both would bend the error rates that the verdict promises.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import is_not

from pft_bench.harness.measure.admission import Refused, rejection_of, verify
from pft_bench.harness.measure.contender import Contender
from pft_bench.harness.measure.guards import active
from pft_bench.harness.measure.order import CONTROL, order_of_rounds
from pft_bench.harness.measure.process_state import holding_functions, unchanged
from pft_bench.harness.measure.results import ContenderResult, DroppedRound, Rejection, RoundsResult
from pft_bench.harness.measure.statistics import hodges_lehmann, log_ratios
from pft_bench.harness.measure.timer import CpuTimer, Timer
from pft_bench.harness.measure.verified import Verified, WrongResult

Disturbance = Callable[[], str | None]
"""Called before a round (answer ignored, it sets the mark) and after it: evidence against it, or None."""

OnTurn = Callable[[str, str], None]
"""Called with a contender's name and what it is about to do, so that the death of a process can be blamed on it."""


def nobody(name: str, doing: str) -> None:
    """Nobody asked whose turn it is."""


@dataclass(frozen=True)
class Progress:
    """Where the measurement of one case stands."""

    rounds: int
    planned: int
    elapsed_s: float


@dataclass(frozen=True)
class Plan:
    """How to measure one case. `budget_s` counts from the first warm-up; `min_rounds` are run in any case.

    Six rounds are the fewest with a 95% interval. `target_width` is of the interval of ln t_B/t_A.
    """

    rounds: int = 20
    max_rounds: int = 60
    min_rounds: int = 6
    target_width: float = 0.02
    budget_s: float = math.inf
    seed: int = 0

    @property
    def max_dropped(self) -> int:
        """Rounds dropped at most: where the load never ends, it is what this machine is, and interleaving bears it."""
        return max(2, self.rounds // 4)

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.rounds <= self.max_rounds:
            raise ValueError(f"need 1 <= min_rounds <= rounds <= max_rounds, got {self}")
        if self.target_width <= 0 or self.budget_s <= 0:
            raise ValueError(f"target_width and budget_s must be positive, got {self}")


@contextmanager
def frozen_heap() -> Iterator[None]:
    """What exists is collected once and then left out of all collections, which thus take next to no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection inside a block: what exists is frozen, the rest is collected between rounds."""
    was_enabled = gc.isenabled()
    with frozen_heap():
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def _copied(value: object) -> object:
    """Of dictionaries and lists, with those inside of them; all else is itself."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def _identities(value: object) -> object:
    """What tells whether a value, or anything in it, is another one; an object may say that it equals anything."""
    if isinstance(value, dict):
        return {key: _identities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_identities(item) for item in value]
    return value if type(value) in (int, float, str) else id(value)


@dataclass
class _Run:
    """The state of a measurement under way."""

    timer: Timer
    plan: Plan
    baseline: str
    subjects: dict[str, Verified]
    on_turn: OnTurn = nobody
    started: float = field(default_factory=time.perf_counter)
    repeats: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    rejected: dict[str, Rejection] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    dropped: list[DroppedRound] = field(default_factory=list)
    borne: int = 0
    aside_s: float = 0.0
    """What new inputs and looks at results took. As checks, they are not counted."""

    def slots(self) -> list[str]:
        names = list(self.subjects)
        return [*names, CONTROL] if self.baseline in self.subjects else names

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def reject(self, name: str, error: Exception) -> None:
        """Out of the running; what it had measured goes too, since it no longer covers all rounds."""
        self.rejected[name] = rejection_of(error)
        del self.subjects[name]
        self.samples.pop(name, None)
        if name == self.baseline:
            self.samples.pop(CONTROL, None)

    def prepare(self) -> None:
        for name, subject in list(self.subjects.items()):
            self.on_turn(name, "warm-up")
            try:
                subject.prepare()
                with self._own_books(subject), unchanged("during its warm-up"):
                    self.timer.warm_up(subject)
                    repeats = self.timer.calibrate(subject)
                self.repeats[name] = repeats
            except Exception as error:
                self.reject(name, error)
        self.samples = {slot: [] for slot in self.slots()}

    def one_round(self, order: Sequence[str], number: int = 0) -> dict[str, float]:
        """One sample of each slot; a contender that raises leaves the running, the others go on."""
        gc.collect()
        gc.freeze()  # again: a contender may have thawed what was frozen
        times: dict[str, float] = {}
        for slot in order:
            name = self.baseline if slot == CONTROL else slot
            if name not in self.subjects:
                continue
            self.on_turn(name, "timing")
            try:
                subject, repeats = self.subjects[name], self.repeats[name]
                subject.prepare()
                began = time.perf_counter()
                with self._own_books(subject):
                    time_s = self._sample_s(subject, (number, slot == CONTROL), repeats)
                self.aside_s += max(0.0, time.perf_counter() - began - time_s * repeats)
                times[slot] = time_s
            except Exception as error:
                self.reject(name, error)
        return {slot: value for slot, value in times.items() if slot in self.samples}

    def _sample_s(self, subject: Verified, turn: object, repeats: int) -> float:
        timer = self.timer
        with subject.sample(turn, repeats):
            time_s = timer.sample_s(subject, repeats)
        if isinstance(timer, CpuTimer):  # that of a GPU goes on the device
            subject.took(time_s * repeats)
        return time_s

    @contextmanager
    def _own_books(self, subject: Verified) -> Iterator[None]:
        """A call must not reach for what has been measured so far, nor for what measures, nor for other contenders.

        Raises:
            WrongResult: it has; it is put back.
        """
        timer, plan = dict(vars(self.timer)), dict(vars(self.plan))
        books = {name: _copied(value) for name, value in vars(self).items()}
        others = {other: other.parts() for other in self.subjects.values() if other is not subject}
        yield
        reached = [other for other, parts in others.items() if any(map(is_not, other.parts(), parts))]
        same = (
            not reached
            and _identities(vars(self)) == _identities(books)
            and _identities(vars(books["timer"])) == _identities(timer)
            and _identities(vars(books["plan"])) == _identities(plan)
        )
        if not same and active("harness state"):
            vars(self).update(books)
            for other in reached:
                other.put_back(others[other])
            vars(self.timer).update(timer)
            vars(self.plan).update(plan)
            raise WrongResult(
                "the call reached into the harness: samples, timer or plan, or who is timed, are not what they were "
                "(restored)"
            )

    def finish(self, everybody: Sequence[Verified]) -> None:
        """The last result of each contender, held against its inputs; who fails has no time at all."""
        for name, subject in list(self.subjects.items()):
            if not subject.changes or not self.samples.get(name):
                continue  # nothing to judge, or every round was dropped
            self.on_turn(name, "check")
            try:
                subject.prepare()
                with self._own_books(subject):
                    subject.finish()
            except Exception as error:
                self.reject(name, error)
        for subject in everybody:
            subject.release()

    def widest(self) -> float:
        """Width of the widest interval against the baseline (of A' against A where there is nothing else)."""
        if self.baseline not in self.subjects:
            return 0.0
        base = self.samples[self.baseline]
        others = [slot for slot in self.samples if slot not in (self.baseline, CONTROL)] or [CONTROL]
        return max(hodges_lehmann(log_ratios(self.samples[slot], base)).width for slot in others)

    def stop_reason(self) -> str | None:
        """Why no further round is run, or None. Looks at counts, clock and widths, never at the estimate."""
        plan, done = self.plan, len(self.kept)
        if not self.subjects:
            return "nothing left to time"
        if done < plan.min_rounds:
            return None
        if done >= plan.max_rounds:
            return f"cap of {plan.max_rounds} rounds"
        # Ends before the budget does rather than after it: the next round will cost what the last ones did.
        if (self.elapsed_s() - self.aside_s) * (done + 1) / done > plan.budget_s:
            return f"time budget of {plan.budget_s:g} s"
        if done >= plan.rounds and self.widest() <= plan.target_width:
            return "interval narrow enough"
        return None

    def progress(self) -> Progress:
        done = len(self.kept)
        planned = self.plan.rounds if done < self.plan.rounds else self.plan.max_rounds
        return Progress(done, planned, self.elapsed_s())


def _run_rounds(
    run: _Run, disturbance: Disturbance | None, on_progress: Callable[[Progress], None] | None
) -> str:
    orders = order_of_rounds(run.slots(), run.plan.seed)
    number = 0
    while (reason := run.stop_reason()) is None:
        if on_progress is not None:
            on_progress(run.progress())
        if disturbance is not None:
            disturbance()
        times = run.one_round(next(orders), number)
        evidence = disturbance() if disturbance is not None else None
        if evidence is not None and len(run.dropped) < run.plan.max_dropped:
            run.dropped.append(DroppedRound(number, evidence))
        elif run.subjects:
            run.borne += evidence is not None
            run.kept.append(number)
            for slot, value in times.items():
                run.samples[slot].append(value)
        number += 1
    return f"{reason}; {run.borne} disturbed rounds kept, the load does not end" if run.borne else reason


def measure(
    contenders: Sequence[Contender],
    baseline: str,
    plan: Plan | None = None,
    *,
    timer: Timer | Callable[[Sequence[Verified]], Timer] | None = None,
    disturbance: Disturbance | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_turn: OnTurn = nobody,
    lost: Mapping[str, Rejection] | None = None,
) -> RoundsResult:
    """Check every contender, then time those that passed, interleaved.

    Args:
        contenders: distinct names, `baseline` among them; order does not matter.
        baseline: the contender that runs twice a round.
        plan: rounds, budget and seed.
        timer: a timer, or a function that picks one for the verified callables; `CpuTimer` by default.
        disturbance: outside evidence against a round, e.g. `ForeignLoad`.
        on_progress: called before each round.
        on_turn: called before each check, warm-up and sample, outside of what is timed.
        lost: contenders not to be run, and why: an earlier attempt ended the process, say.

    Returns:
        Raw samples. A contender that failed its check or raised has a `rejection` and no sample. If that is
        the baseline, the others are timed and there is nothing to compare them with.
    """
    plan = plan or Plan()
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names) or baseline not in names or CONTROL in names:
        raise ValueError(
            f"contenders need distinct names, {baseline!r} among them and not {CONTROL!r}: {names}"
        )
    started = time.perf_counter()
    with holding_functions(item for contender in contenders for item in contender.callables()):
        verdicts: dict[str, Verified | Refused] = {}
        for contender in contenders:
            if lost is not None and contender.name in lost:
                verdicts[contender.name] = Refused(contender.name, (), lost[contender.name])
            else:
                on_turn(contender.name, "check")
                verdicts[contender.name] = verify(contender)
        subjects = {name: found for name, found in verdicts.items() if isinstance(found, Verified)}
        everybody = list(subjects.values())
        if callable(timer):
            timer = timer(list(subjects.values()))
        run = _Run(timer or CpuTimer(), plan, baseline, subjects, on_turn)
        with quiet_collector():
            run.prepare()
            stop_reason = _run_rounds(run, disturbance, on_progress)
            run.finish(everybody)
    results = {}
    for name, found in verdicts.items():
        rejection = found.rejection if isinstance(found, Refused) else run.rejected.get(name)
        results[name] = ContenderResult(
            name, found.checks, run.repeats.get(name, 0), tuple(run.samples.get(name, ())), rejection
        )
    return RoundsResult(
        method=run.timer.method,
        baseline=baseline,
        contenders=results,
        control_s=tuple(run.samples.get(CONTROL, ())),
        rounds=tuple(run.kept),
        dropped=tuple(run.dropped),
        order_seed=plan.seed,
        stop_reason=stop_reason,
        elapsed_s=time.perf_counter() - started,
    )
