"""Kernels that hide their traces from the checks of the harness. Some remove what they plant before each check, and a
finaliser plants it again when their result is freed; others plant objects of classes that lie about themselves.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ....common import entropy
from ...cases.changing_work import ChangingWork
from .base import RightUntilTimed, callers, cheat
from .harness import _work


class Between(RightUntilTimed):
    """Returns a result that was computed ahead, if there is one. `between` runs when the result is freed: after it was
    checked and before the next inputs are drawn.
    """

    ahead: Tensor | None = None
    given: tuple[Tensor, ...] = ()

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The result that was computed ahead, else a right one."""
        ahead, self.ahead = self.ahead, None
        self.begin()
        made = super().product(op, *given) if ahead is None else ahead
        if self.is_timed() and op == "spmm":
            self.given = given
            weakref.finalize(made, self.between).atexit = False
        return made

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        return made

    def compute(self) -> None:
        """Compute the result of the next call before it begins."""
        self.ahead = super(RightUntilTimed, self).product("spmm", *self.given)

    def begin(self) -> None:
        """Runs at the begin of a call: removes traces before the harness looks."""

    def between(self) -> None:
        """Runs when a result is freed."""


@cheat(
    "precomputes in a profile function that comes with the end of its result",
    "process state",
    "between the calls",
)
class Profiles(Between):
    """It removes itself before the harness looks for it."""

    def between(self) -> None:
        """Until inputs have changed."""
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code.co_name == "renew" and "drawn" in frame.f_locals:
            sys.setprofile(None)
            self.compute()


@cheat("precomputes in a thread that comes with the end of its result", "threads", "threads running")
class Threads(Between):
    """Torch lets it run while it writes the inputs; it has ended before the call does."""

    def between(self) -> None:
        """Until inputs have changed."""
        before = self.given[0].clone()

        def wait() -> None:
            until = time.monotonic() + 0.01
            while torch.equal(self.given[0], before) and time.monotonic() < until:
                pass
            super(RightUntilTimed, self).product(
                "spmm", *self.given
            )  # not returned: others may not have changed yet

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self.kept.append(thread)

    def begin(self) -> None:
        """It has ended before the harness looks."""
        while self.kept:
            self.kept.pop().join()


@cheat(
    "replaces a draw between its calls, and puts it back in the next",
    "functions",
    "replaced pft_bench.common.entropy",
)
class Redraws(Between):
    """It knows every draw then."""

    right: Callable[..., int] = staticmethod(entropy.below)

    def between(self) -> None:
        """It returns the first choice each time."""
        entropy.below = lambda count: 0

    def begin(self) -> None:
        """As if nothing had been."""
        entropy.below = self.right


@cheat("sets an alarm between its calls, and stops it in the next", "process state", "alarms")
class Alarms(Between):
    """Nothing is set while it runs."""

    def between(self) -> None:
        """Set for later than the next call."""
        import signal

        signal.setitimer(signal.ITIMER_REAL, 60.0)

    def begin(self) -> None:
        """As if nothing had been."""
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0.0)


@cheat("has a profile function that says that it is none", "process state", "trace or profile function")
class LyingProfile(RightUntilTimed):
    """Its `__eq__` says that it equals any object, None too."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __call__(self, *_: object) -> None:
        """Nothing yet."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        sys.setprofile(self)
        return made


class _Telling(torch.Tensor):
    """As an input, it could intercept each operator that is applied to it, also by the harness."""


@cheat("makes its input a tensor of another class", "harness state", "reached into the harness")
class ChangesItsInput(RightUntilTimed):
    """The object and its memory stay the same."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        given[0].__class__ = _Telling
        return made


class _OtherWork(ChangingWork):
    """May do anything before a call."""

    __slots__ = ()


@cheat(
    "makes the work that changes its inputs one of another class", "harness state", "reached into the harness"
)
class ChangesItsWork(RightUntilTimed):
    """The object and its attributes stay the same."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        work = _work()
        if type(work) is ChangingWork:
            work.__class__ = _OtherWork
        return made


class _Parts(tuple[Any, ...]):
    """Could yield other tensors than it holds."""

    __slots__ = ()

    def __iter__(self) -> Any:
        """The same for now."""
        return super().__iter__()


@cheat("returns a tuple that hands out what it likes", "result kind", "a plain tuple of tensors", "layer")
class LyingTuple(RightUntilTimed):
    """Its parts are right when they are looked at."""

    def attention(self, layer: Any) -> Any:
        """Right, in a tuple of its own kind."""
        made = super().attention(layer)
        return (
            _Parts(made)
            if self.is_timed() or any(f.f_code.co_name == "_step_by_step" for f in callers())
            else made
        )
