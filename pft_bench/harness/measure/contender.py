"""Who competes: a callable with a name, the check it must pass, and the work that the harness changes under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .results import CheckOutcome

Call = Callable[[], object]
Check = Callable[[Call], Sequence[CheckOutcome]]


class ContenderWork(Protocol):
    """What a contender computes on. The harness owns it, and changes it where the kernel cannot see."""

    @property
    def dear(self) -> bool:
        """Whether a call costs so much that none is made but those that are timed."""

    @property
    def costly(self) -> bool:
        """Whether a look at a result costs about as much as a call."""

    def begin(self) -> None:
        """A sample begins: inputs that others have written to are put right."""

    def renew(self, turn: object) -> object:
        """Give all inputs values that no call has seen, in place; what to `recall` them by.

        `turn` is the round, the slot and the call ("last" in each sample): work that is dear to judge gives contenders
        of a round the same values.
        """

    def recall(self, drawn: object) -> None:
        """Bring back the values of an earlier `renew`."""

    def restore(self) -> None:
        """Bring back the values that the checks use."""

    def steps(self) -> Iterator[str]:
        """Change one input after the other, each alone; the name of what has changed."""

    def inputs(self) -> Sequence[Tensor]:
        """All inputs."""

    def holds(self) -> tuple[object, ...]:
        """What nobody but the harness changes."""

    def put_back(self, held: tuple[Any, ...]) -> None:
        """What `holds` gave before a call changed it."""

    def evidence(self) -> tuple[object, ...]:
        """What results are held against beside the inputs; nobody but the harness changes it either."""

    def returned(self, output: object, drawn: object) -> None:
        """The last call of a sample returned this; it is right to keep it if others can be held against it."""

    def settle(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Hold the last result of a sample against what others have returned since for the same values, if they
        have.
        """

    def glance(self) -> Sequence[CheckOutcome]:
        """Hold a part of the inputs, drawn at random, against what they must be."""

    def judge(self, output: object, *, whole: bool = True) -> Sequence[CheckOutcome]:
        """Hold an output against what the present inputs must give, and the inputs against what they must be: all of
        them where `whole`, else a part.
        """


def _as_it_is() -> None:
    """Most contenders run in the process as they find it."""


@dataclass(frozen=True)
class Contender:
    """A named callable and the check it must pass before it is timed.

    `check` gets the very callable that will be timed.
    `prepare` is called before the check, the warm-up and each sample, outside of what is timed: it brings the process
    into the state in which this contender runs, such as its number of threads. Without `work`, the call is timed on the
    inputs that it was checked on.
    """

    name: str
    call: Call
    check: Check
    prepare: Call = _as_it_is
    work: ContenderWork | None = None
