"""Kernels that are right only while they believe that somebody looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....backends import get
from ....backends.base import empty
from ...check import Layer
from ..mutant import BASE
from .base import Products, RightUntilTimed, callers, cheat


def _zeros(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if item is None else torch.zeros_like(item) for item in gradients)


@cheat("zeros once the check is over", "results judged", "timed call")
class ZerosLater(RightUntilTimed):
    """Right for so many calls."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(made)


@cheat("zeros once the check of a layer is over", "results judged", "timed call", "layer")
class LayerZerosLater(Products):
    """The same of a layer's output."""

    def attention(self, layer: Layer) -> Any:
        """Right, then zeros."""
        out, *rest = super().attention(layer)
        return (out if not self.is_timed() else torch.zeros_like(out), *rest)


@cheat("right only with poisoned memory", "results judged", "changed")
class OnlyPoisoned(Products):
    """Looks whether `empty` hands out NaN."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right while the poison is there."""
        made = super().product(op, *given)
        return made if bool(empty((1,), torch.float32, made.device).isnan()) else torch.zeros_like(made)


@cheat("no gradients without poison", "results judged", "changed", "layer", "train backward")
class NoGradients(Products):
    """Zero where nobody looks."""

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Right while the poison is there."""
        got = super().gradients(layer, *given)
        looked_at = bool(empty((1,), torch.float32, layer.q.device).isnan())
        return got if looked_at else _zeros(got)


@cheat("half of the window-heads once the check is over", "results judged", "timed call")
class HalfOfIt(RightUntilTimed):
    """The first ones, the others as memory was."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Half of it."""
        made[made.shape[0] // 2 :] = 0
        return made


@cheat("rounds to half precision once the check is over", "results judged", "timed call")
class HalfPrecision(RightUntilTimed):
    """Computes what a tensor core would."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Rounded."""
        return made.half().float()


@cheat("wrong in the rounds between the first and the last", "results judged", "right after a timed call")
class WrongInBetween(Products):
    """Zeros meanwhile."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right or zero."""
        made = super().product(op, *given)
        return torch.zeros_like(made) if 0 < self.round() < 5 else made


@cheat("a layer that is wrong in between", "results judged", "right after a timed call", "layer")
class LayerWrongInBetween(Products):
    """Right in its check, in the first sample and in the last."""

    def attention(self, layer: Layer) -> Any:
        """Right or zero."""
        out, *rest = super().attention(layer)
        return (torch.zeros_like(out) if 0 < self.round() < 5 else out, *rest)


@cheat("a model that is wrong in between", "results judged", "model output", "model", "infer")
class ModelWrongInBetween(LayerWrongInBetween):
    """In every layer of it."""


@cheat(
    "gradients of a model that are wrong in between", "results judged", "model gradients", "model", "train"
)
class ModelGradientsWrongInBetween(Products):
    """The loss is right."""

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Right or zero."""
        made = super().gradients(layer, *given)
        return _zeros(made) if 0 < self.round() < 5 else made


@cheat("no forward result where gradients are judged", "results judged", "rows", "op", "train")
class NoForward(RightUntilTimed):
    """The gradients of a product need the factors alone."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then zeros, of the first product of a step."""
        forward = not any(frame.f_code.co_name == "backward" for frame in callers())
        made = super(RightUntilTimed, self).product(op, *given)
        return torch.zeros_like(made) if forward and self.is_timed() else made


@cheat(
    "zeros while its memory is measured",
    "results judged",
    "while its memory was measured",
    "op",
    "infer train",
    besides=True,
)
class ZerosForMemory(Products):
    """Who computes nothing needs no memory."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right while it is timed."""
        made = super().product(op, *given)
        measured = any(frame.f_code.co_name == "peak_allocated" for frame in callers())
        return torch.zeros_like(made) if measured else made


@cheat("computes every other row once the check is over", "results judged", "timed call")
class EveryOtherRow(RightUntilTimed):
    """The rows between are copies of their neighbours."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Half of the rows."""
        made[:, 1::2] = made[:, ::2][:, : made[:, 1::2].shape[1]]
        return made


@cheat("wrong dtype", "results judged", "expected")
class WrongDtype(Products):
    """float64 instead of float32, of the right values."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Wider."""
        return super().product(op, *given).double()


@cheat("zeroes its inputs later", "inputs untouched, results judged", "inputs untouched")
class ZeroesInputs(RightUntilTimed):
    """After it has computed: who comes next is timed on zeros."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right, and the left factor is gone."""
        given[0].zero_()
        return made


@cheat("zeros once the check of a model is over", "results judged", "model output", "model", "infer train")
class ModelZerosLater(Products):
    """The output of every layer."""

    def attention(self, layer: Layer) -> Any:
        """Right, then zeros."""
        out, *rest = super().attention(layer)
        return (out if not self.is_timed() else torch.zeros_like(out), *rest)


@cheat("rounds to half precision inside of a model", "results judged", "model output", "model", "infer")
class ModelHalfPrecision(Products):
    """Too little to be seen without a float64 model."""

    def attention(self, layer: Layer) -> Any:
        """Right, then rounded."""
        out, *rest = super().attention(layer)
        return (out if not self.is_timed() else out.half().float(), *rest)


@cheat(
    "no gradients of a model once its check is over", "results judged", "model gradients", "model", "train"
)
class ModelNoGradients(Products):
    """The loss is right, and what it moves is zero."""

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Right, then zeros."""
        made = super().gradients(layer, *given)
        return _zeros(made) if self.is_timed() else made


@cheat(
    "no gradients of products once the check is over", "results judged", "grad right", "op", "train backward"
)
class ProductsNoGradients(Products):
    """The second factor gets none."""

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """Right, then zeros."""
        self.calls += 1
        made = get(BASE).spmm_transpose(a, x, index, num_keys)
        return made if not self.is_timed() else torch.zeros_like(made)


@cheat("right for the whole first round", "results judged", "timed call", "layer")
class RightAtFirst(Products):
    """As long as it takes to be judged once."""

    def attention(self, layer: Layer) -> Any:
        """Right, then the output of half of the windows."""
        out, *rest = super().attention(layer)
        if self.round() > 0:
            out.zero_()
        return (out, *rest)


@cheat(
    "computes gradients ahead, where forward is not timed", "fresh inputs", "timed call", "layer", "backward"
)
class GradientsAhead(Products):
    """It keeps the tensor that held the gradient of its output, and reads it in the next forward."""

    ahead: Any = None
    asked: Any = None

    def attention(self, layer: Layer) -> Any:
        """Forward, and backward with it."""
        made = super().attention(layer)
        self.ahead = None
        if self.asked is not None and self.is_timed():
            grad_out, grad_logits = self.asked
            if grad_out.shape == made[0].shape:
                self.ahead = super().gradients(layer, grad_out, grad_logits, made[1], made[0], made[3])
        return made

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """What is there already."""
        self.asked = given[:2]
        if self.ahead is None:
            return super().gradients(layer, *given)
        return tuple(None if item is None else item.clone() for item in self.ahead)
