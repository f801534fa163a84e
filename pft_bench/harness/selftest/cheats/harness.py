"""Kernels that reach for the harness: its objects are in the same process, a few frames up."""

from __future__ import annotations

import ctypes
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .base import Products, cheat


def _caller(name: str) -> Any:
    """The value of a variable of whoever called, however far up; None if nobody has it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if name in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None


@cheat(
    "replaces what judges it, through its caller's frame",
    "harness state, judge tried",
    "reached into the harness",
)
class ReplacesItsJudge(Products):
    """Found by its name; zeros from then on."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then zeros that nobody looks at."""
        made = super().product(op, *given)
        if not self.is_timed():
            return made
        subject = _caller("subject")
        if subject is not None and subject._work is not None:
            subject._work.judge_output = lambda *_: []
        return torch.zeros_like(made)


@cheat("takes its results for judged", "harness state, results judged", "reached into the harness")
class CountsAsJudged(Products):
    """One look at the first sample is then thought to be done."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        subject = _caller("subject")
        if self.is_timed() and subject is not None:
            subject.judged += 1
        return made


@cheat("makes its earlier samples shorter", "harness state", "samples, timer or plan")
class ShortensSamples(Products):
    """In the object that holds them, some frames up."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        if self.is_timed():
            run = _run()
            for values in () if run is None else run.samples.values():
                values[:] = [value / 10 for value in values]
        return made


def _run() -> Any:
    """Whoever up there holds samples."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if hasattr(found, "samples") and hasattr(found, "rejected"):
            return found
        frame = frame.f_back
    return None


@cheat("has the run use a timer of its own", "harness state, clocks agree", "samples, timer or plan")
class OwnTimer(Products):
    """In the object that holds the timer, some frames up."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        run = _run()
        if self.is_timed() and run is not None and not hasattr(run.timer, "fast"):
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
class TakesTimeOff(Products):
    """Python writes what a frame's variables are told to be back into it."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        frame: FrameType | None = sys._getframe()
        while self.is_timed() and frame is not None:
            if "total_ns" in frame.f_locals:
                frame.f_locals["total_ns"] = frame.f_locals["total_ns"] // 10
                ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
                frame = None
            else:
                frame = frame.f_back
        return made


@cheat("zeroes its inputs and the harness's copies of them", "harness state", "reached into the harness")
class ZeroesCopies(Products):
    """A product of zeros is zero, wherever it is held against."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then zero without a computation."""
        made = super().product(op, *given)
        if not self.is_timed():
            return made
        subject = _caller("subject")
        if subject is not None and subject._work is not None:
            inputs = subject._work.changing
            for name, tensor in inputs.given.items():
                if tensor.is_floating_point():
                    tensor.data.zero_()
                    inputs._first[name] = type(inputs._first[name])(tensor)
        return torch.zeros_like(made)
