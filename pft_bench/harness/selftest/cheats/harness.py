"""Kernels that reach for the harness: its objects are in the same process, a few frames up."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .base import CHECKED, Products, cheat


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
        if self.calls <= CHECKED:
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
        if self.calls > CHECKED and subject is not None:
            subject.judged += 1
        return made


@cheat("makes its earlier samples shorter", "harness state", "samples so far")
class ShortensSamples(Products):
    """In the object that holds them, some frames up."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        if self.calls > CHECKED:
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


@cheat("zeroes its inputs and the harness's copies of them", "harness state", "reached into the harness")
class ZeroesCopies(Products):
    """A product of zeros is zero, wherever it is held against."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then zero without a computation."""
        made = super().product(op, *given)
        if self.calls <= CHECKED:
            return made
        subject = _caller("subject")
        if subject is not None and subject._work is not None:
            inputs = subject._work.changing
            for name, tensor in inputs.given.items():
                if tensor.is_floating_point():
                    tensor.data.zero_()
                    inputs._first[name] = type(inputs._first[name])(tensor)
        return torch.zeros_like(made)
