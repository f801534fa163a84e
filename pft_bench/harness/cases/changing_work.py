"""Work that changes under a contender before each of its calls, and by which its results are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...common import entropy
from ..measure.process_state import ProcessChanged, listeners, running_threads, started
from ..measure.results import CheckOutcome
from .changing_inputs import Draw, Inputs

DRAWS_REMEMBERED = 64
"""Draws of shared values that are kept: more than a round has slots, or calls of a tiny model in a sample."""


def _nothing() -> None:
    """Nothing has to be prepared."""


Judge = Callable[[object, int | None], Sequence[CheckOutcome]]
"""A result, and the window-head to look at (None: any) -> what holds of it."""


@dataclass(slots=True)
class ChangingWork:
    """The work of a contender whose inputs change before each call (`measure.contender.ContenderWork`).

    `judge_output` holds a result against the present inputs. `after` is called when they have changed, for what has to
    be prepared from them outside of the clock; those named in `late` change once more after it, so that nothing of the
    timed call can be done there. A look is `costly` that takes about as long as a call. `own` is the harness's own
    work: the baseline, and compositions of public operators.
    """

    changing: Inputs
    judge_output: Judge
    after: Callable[[], object] = _nothing
    at_rest: Callable[[], object] = lambda: None
    late: tuple[str, ...] = ()
    own: bool = False
    costly: bool = False

    @property
    def dear(self) -> bool:
        """No: a look at a result costs little."""
        return False

    def begin(self) -> None:
        """What others have written to the inputs goes before a sample begins."""
        self.changing.rewrite()

    def renew(self, turn: object) -> object:
        """New values for all inputs."""
        drawn = self.changing.renew()
        if self.after is _nothing and not self.late:
            return drawn
        before, threads = listeners(), running_threads()
        self.after()
        # what runs there is the kernel's, and the last values are not drawn yet
        if listeners() != before or started(threads, running_threads()):
            raise ProcessChanged(
                "in its forward pass, before a timed call, it changed what can run between calls: a thread, a trace or "
                "profile function, a mode of torch, an alarm, a signal handler, an audit hook, the collector of garbage"
            )
        return self.changing.renew_late(self.late) if self.late else drawn

    def recall(self, drawn: object) -> None:
        """Those of an earlier call."""
        assert isinstance(drawn, Draw)
        self.changing.recall(drawn)

    def restore(self) -> None:
        """Those of the checks."""
        self.changing.restore()
        self.at_rest()

    def steps(self) -> Iterator[str]:
        """One input after the other. What the harness itself composes of PyTorch remembers nothing."""
        for name in () if self.own else self.changing.steps():
            self.after()
            yield name

    def inputs(self) -> Sequence[Tensor]:
        """All that the kernel is given."""
        return list(self.changing.given.values())

    def holds(self) -> tuple[object, ...]:
        """What only the harness changes."""
        own = self.changing, self.judge_output, self.after, self.at_rest, self.late, self.costly
        return *own, *self.changing.holds()

    def put_back(self, held: tuple[Any, ...]) -> None:
        """What `holds` gave before somebody changed it; others compute on the same inputs."""
        self.changing, self.judge_output, self.after, self.at_rest, self.late, self.costly = held[:6]
        self.changing.put_back(held[6:])

    def evidence(self) -> tuple[object, ...]:
        """Nothing: references are computed from the inputs where they are needed."""
        return ()

    def returned(self, output: object, drawn: object) -> None:
        """Nobody else has computed on these values."""

    def settle(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Nobody else has computed on these values."""
        return ()

    def glance(self) -> Sequence[CheckOutcome]:
        """A part of the inputs, after a sample."""
        return [self.changing.glance()]

    def judge(self, output: object, *, whole: bool = True) -> Sequence[CheckOutcome]:
        """The inputs first: what is computed from them says nothing if they are not what they were.

        A costly look takes one window-head: that in which the index changed, any, or both where `whole`.
        """
        untouched = self.changing.untouched() if whole else self.changing.glance()
        if not untouched.passed:
            return [untouched]
        places = [self.changing.now.head]
        if self.costly:
            places = [*places, None] if whole else [places[0] if entropy.chance(0.5) else None]
        return [untouched, *(item for place in places for item in self.judge_output(output, place))]


class Answers(Protocol):
    """What the baseline has returned in the last rounds, for values that other contenders get too."""

    def add(self, output: object, drawn: object) -> None:
        """Keep a result of the baseline."""

    def against(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Hold another result against the baseline's for the same values; nothing where it has none."""

    def evidence(self) -> tuple[object, ...]:
        """All that results are held against."""


@dataclass(slots=True)
class SharedWork(ChangingWork):
    """Work that is dear to judge: contenders of one round get the same values, for which one reference is enough.

    What the baseline returned in the same round is one that costs nothing: the last call of each sample is held against
    it, as far as a look without a float64 model can tell.
    """

    shared: dict[object, Draw] = field(default_factory=dict)
    answers: Answers | None = None

    def evidence(self) -> tuple[object, ...]:
        """The references that have been computed, and the baseline's results."""
        return () if self.answers is None else self.answers.evidence()

    def returned(self, output: object, drawn: object) -> None:
        """The baseline's is kept."""
        if self.answers is not None and self.own:
            self.answers.add(output, drawn)

    def settle(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Against the baseline's."""
        return () if self.answers is None or self.own else self.answers.against(output, drawn)

    @property
    def dear(self) -> bool:
        """Yes: a reference is a call of the baseline."""
        return True

    def renew(self, turn: object) -> object:
        """New values for each call of each round and slot, the same for all contenders."""
        if turn not in self.shared:
            if len(self.shared) > DRAWS_REMEMBERED:
                self.shared.pop(next(iter(self.shared)))
            self.shared[turn] = self.changing.renew()
        else:
            self.changing.recall(self.shared[turn])
        self.after()
        return self.shared[turn]

    def steps(self) -> Iterator[str]:
        """None: a model has one input, and its layers see another one in each round."""
        return iter(())
