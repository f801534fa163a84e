"""Kernels whose results are none: read later, written later, or somebody else's memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor

from ...check import Layer
from .base import Products, RightUntilTimed, cheat


class _Lazy(Tensor):
    """Computes when it is read."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@cheat("a subclass that computes when read", "result kind", "of type torch.Tensor exactly")
class Lazy(Products):
    """Here it has computed already: the kind alone is what is wrong."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """In a subclass."""
        return super().product(op, *given).as_subclass(_Lazy)


@cheat("a tensor with a method of its own", "result kind", "attributes of its own")
class OwnMethod(Products):
    """Of the right type; a look through `detach` would be the kernel's moment to compute."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With another `detach`."""
        made = super().product(op, *given)
        made.detach = lambda: Tensor.detach(made)  # type: ignore[method-assign]
        return made


@cheat("a thread fills the result later", "threads, results judged, result stays", "")
class Later(RightUntilTimed):
    """Returns before the work is done."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Empty at first."""
        later = torch.zeros_like(made)

        def fill() -> None:
            time.sleep(0.002)
            later.copy_(made)

        threading.Thread(target=fill, daemon=True).start()
        return later


@cheat("one static output buffer", "result memory, result stays", "memory of an earlier result")
class StaticBuffer(Products):
    """Each result overwrites the last."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The same memory again."""
        made = super().product(op, *given)
        buffer: Tensor = self.known.setdefault((op, made.shape), torch.empty_like(made))
        return buffer.copy_(made)


@cheat("two static output buffers in turn", "result memory", "memory of an earlier result")
class TwoBuffers(Products):
    """So that the last result still stands when the next one comes."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The memory of the result before the last."""
        made = super().product(op, *given)
        buffer: Tensor = self.known.setdefault((op, made.shape, self.calls % 2), torch.empty_like(made))
        return buffer.copy_(made)


@cheat("a view that negates when it is read", "result kind", "negates when it is read")
class Negated(Products):
    """Of the right type and values; the last step is left to who reads it."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With the sign left to do."""
        return torch._neg_view(super().product(op, *given).neg())


@cheat("zeros that have no memory", "result kind, result memory, results judged", "zeros without memory")
class NoMemory(RightUntilTimed):
    """Of the right type; whoever adds to it finds out."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Nothing."""
        return torch._efficientzerotensor(made.shape, dtype=made.dtype)


@cheat(
    "a result in the memory of an input",
    "result memory, result stays, inputs untouched, results judged",
    "memory of an input",
    "layer",
)
class InInput(Products):
    """What it was given is gone; the right values are there."""

    def attention(self, layer: Layer) -> Any:
        """The values of v go once the check is over."""
        out, *rest = super().attention(layer)
        if not self.is_timed():
            return (out, *rest)
        layer.v.data.copy_(out)
        return (layer.v, *rest)


@cheat(
    "hands one buffer out again after its check",
    "result memory, result stays",
    "memory of an earlier result",
)
class BufferLater(RightUntilTimed):
    """While results are compared it does not."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """The same memory again."""
        buffer: Tensor = self.known.setdefault((op, made.shape), torch.empty_like(made))
        return buffer.copy_(made)
