"""Kernels that reach for the harness: its objects are in the same process, a few frames up."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...cases.changing_inputs import FirstValues
from ...check import Layer
from .base import Products, RightUntilTimed, callers, cheat


def _caller(name: str) -> Any:
    """The value of a variable of whoever called, however far up; None if nobody has it."""
    return next((frame.f_locals[name] for frame in callers() if name in frame.f_locals), None)


def _run() -> Any:
    """Whoever up there holds samples."""
    holders = (frame.f_locals.get("self") for frame in callers())
    return next((one for one in holders if hasattr(one, "samples") and hasattr(one, "rejected")), None)


def _work() -> Any:
    """What the harness judges this kernel's results by; None while it has nothing."""
    return getattr(_caller("subject"), "_work", None)


@cheat(
    "replaces what judges it, through its caller's frame",
    "harness state, judge tried",
    "reached into the harness",
)
class ReplacesItsJudge(RightUntilTimed):
    """Found by its name; zeros from then on."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Zeros that nobody looks at."""
        work = _work()
        if work is not None:
            work.judge_output = lambda *_: []
        return torch.zeros_like(made)


@cheat("takes its results for judged", "harness state, results judged", "reached into the harness")
class CountsAsJudged(RightUntilTimed):
    """One look at the first sample is then thought to be done."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        subject = _caller("subject")
        if subject is not None:
            subject.judged += 1
        return made


@cheat("makes its earlier samples shorter", "harness state", "samples, timer or plan")
class ShortensSamples(RightUntilTimed):
    """In the object that holds them, some frames up."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        run = _run()
        for values in () if run is None else run.samples.values():
            values[:] = [value / 10 for value in values]
        return made


@cheat("makes its samples shorter when all are judged", "harness state", "samples, timer or plan")
class ShortensAtTheEnd(Products):
    """While its last result is looked at."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        run = _run()
        if run is not None and any(frame.f_code.co_name == "_look_at_the_last" for frame in callers()):
            for values in run.samples.values():
                values[:] = [value / 10 for value in values]
        return super().product(op, *given)


@cheat("puts another in its own place", "harness state", "who is timed")
class TimesAnother(RightUntilTimed):
    """One that does nothing and that nobody judges."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        run = _run()
        if run is not None and not isinstance(run.subjects.get(self.name, _Nothing), _Nothing):
            run.subjects[self.name] = _Nothing()
        return made


class _Nothing:
    """As much of a verified contender as a timer asks for."""

    changes = False

    def prepare(self) -> None:
        """Nothing."""

    def call(self) -> None:
        """Nothing."""

    def sample(self, *_: object) -> Any:
        """Nothing is looked at."""
        return nullcontext()

    def took(self, seconds: float) -> None:
        """Nothing."""


@cheat("plants what a model is judged by", "harness state", "reached into the harness", "model")
class PlantsReference(Products):
    """Zeros are right where masked dense attention is said to have given zeros; here for an image that never comes."""

    def attention(self, layer: Layer) -> Any:
        """Right, with a reference of its own."""
        work = _work() if self.is_timed() else None
        if work is not None:
            work.answers.images._known[b""] = (layer.q, None)
        return super().attention(layer)


@cheat("has the run use a timer of its own", "harness state, clocks agree", "samples, timer or plan")
class OwnTimer(RightUntilTimed):
    """In the object that holds the timer, some frames up."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        run = _run()
        if run is not None and not hasattr(run.timer, "fast"):
            run.timer = _Fast(run.timer)
        return made


class _Fast:
    """Everything takes a tenth of what it takes."""

    fast = True

    def __init__(self, timer: Any) -> None:
        self._timer, self.method = timer, timer.method

    def sample_s(self, subject: Any, repeats: int) -> float:
        """A tenth."""
        return float(self._timer.sample_s(subject, repeats)) / 10


@cheat("takes time off the timer's count, in its frame", "clocks agree", "by another clock")
class TakesTimeOff(RightUntilTimed):
    """Python writes what a frame's variables are told to be back into it."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        frame = next((frame for frame in callers() if "total_ns" in frame.f_locals), None)
        if frame is not None:
            frame.f_locals["total_ns"] = frame.f_locals["total_ns"] // 10
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        return made


@cheat("zeroes its inputs and the harness's copies of them", "harness state", "reached into the harness")
class ZeroesCopies(RightUntilTimed):
    """A product of zeros is zero, wherever it is held against."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Zero without a computation."""
        work = _work()
        if work is not None:
            inputs = work.changing
            for name, tensor in inputs.given.items():
                if tensor.is_floating_point():
                    tensor.data.zero_()
                    inputs._first[name] = FirstValues.of(tensor)
        return torch.zeros_like(made)
