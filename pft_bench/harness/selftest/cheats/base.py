"""What cheats have in common: their names, the words of their rejection, and a kernel that is right until it is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

from ....backends import get
from ...check import Layer
from ..mutant import BASE, Mutant


@dataclass(frozen=True)
class Cheat:
    """One of them: at which level and in which modes it is tried, the words of its rejection, and the guards without
    which it gets a time.
    """

    name: str
    guards: tuple[str, ...]
    says: str
    kind: type[Mutant]
    level: str = "op"
    modes: tuple[str, ...] = ("infer",)
    besides: bool = False
    """Whether it shows only in what is measured after the times: FLOPs and memory."""
    processors: int = 1
    """The least number of processors with which it changes anything."""

    @property
    def lacks(self) -> str:
        """Why it cannot be tried in this process; empty where it can."""
        there = len(os.sched_getaffinity(0))
        return f"needs {self.processors} processors, this process may use {there}" * (there < self.processors)


CHEATS: list[Cheat] = []


def cheat(
    name: str,
    guards: str,
    says: str,
    level: str = "op",
    modes: str = "infer",
    *,
    besides: bool = False,
    processors: int = 1,
) -> Callable[[type[Mutant]], type[Mutant]]:
    """Plant the decorated kernel; `guards` with commas between them, `modes` with spaces."""

    def planted(kind: type[Mutant]) -> type[Mutant]:
        kind.name = "cheat"
        CHEATS.append(
            Cheat(
                name, tuple(guards.split(", ")), says, kind, level, tuple(modes.split()), besides, processors
            )
        )
        return kind

    return planted


def callers() -> Iterator[FrameType]:
    """The frames of whoever called, from the nearest up."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


class Products(Mutant):
    """Both products go one way, and so do gradients of a layer."""

    def __init__(self) -> None:
        self.calls = 0
        self.known: dict[Any, Any] = {}
        self.kept: list[Any] = []
        """Inputs that it holds, so that no other gets their addresses."""

    @staticmethod
    def round() -> int:
        """The number of the round that runs, as one who looks for it among the callers finds it; -1 while none does."""
        for frame in callers():
            if frame.f_code.co_name == "one_round":
                return int(frame.f_locals.get("number", 0))
        return -1

    def is_timed(self) -> bool:
        """Whether the check is over, and what is returned counts."""
        return self.round() >= 0

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """Counted."""
        self.calls += 1
        return self.product("sddmm", q, k, index)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Counted."""
        self.calls += 1
        return self.product("spmm", a, v, index)

    def attention_forward(self, layer: Layer) -> Any:
        """Counted."""
        self.calls += 1
        return self.attention(layer)

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Tensor | None, *done: Tensor
    ) -> Any:
        """Counted."""
        self.calls += 1
        return self.gradients(layer, grad_out, grad_logits, *done)

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The right one."""
        found: Tensor = getattr(get(BASE), op)(*given)
        return found

    def attention(self, layer: Layer) -> Any:
        """The right one."""
        return get(BASE).attention_forward(layer)

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """The right ones; `given` are those of the output and of the logits, then what forward returned."""
        return get(BASE).attention_backward(layer, *given)

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """A copy of what was made for this key."""
        if key not in self.known:
            self.known[key] = make()
        found = self.known[key]
        return tuple(item.clone() for item in found) if isinstance(found, tuple) else found.clone()


class RightUntilTimed(Products):
    """Once its check is over, a product is what `once_timed` makes of the right one."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then not."""
        made = super().product(op, *given)
        return self.once_timed(made, op, *given) if self.is_timed() else made

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """What is returned then for the right product of `given`."""
        raise NotImplementedError


def layer_tensors(layer: Layer) -> tuple[Tensor, ...]:
    """All inputs of a layer."""
    return tuple(layer.tensors().values())
