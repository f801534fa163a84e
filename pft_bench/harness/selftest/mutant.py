"""A right backend with one thing broken, as a real kernel would break it, and the checks that are there to see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...backends import Backend, get
from ..check import Layer

BASE = "cpu"
"""The right backend that mutants wrap."""

GUARDS: Mapping[str, tuple[str, ...]] = {
    "values": ("attention out", "attention against PyTorch", "attention logsumexp", "attention logits"),
    "products": ("sddmm operator", "sddmm against PyTorch", "spmm operator", "spmm against PyTorch"),
    "gradients": ("attention grad_",),
    "selection": ("attention selection",),
    "index": ("attention index",),
    "ties": ("attention ties",),
    "shapes": ("attention shapes",),
    "inputs untouched": ("attention inputs", "attention backward inputs", "sddmm inputs", "spmm inputs"),
    "recomputed": ("attention recomputed", "sddmm recomputed", "spmm recomputed"),
}
"""The harness's guards over kernels, and how the names of their checks begin."""


class Mutant(Backend):
    """The `cpu` backend, with hooks to break one thing; `fails` names the check that must find it."""

    name = "mutant"
    summary = "wrong on purpose"
    dtypes = frozenset({torch.float32})
    devices = frozenset({"cpu"})
    fails = ""

    def available(self) -> str | None:
        """Always."""
        return None

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """As the base."""
        return get(BASE).sddmm(q, k, index)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """As the base."""
        return get(BASE).spmm(a, v, index)

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """As the base."""
        return get(BASE).spmm_transpose(a, x, index, num_keys)

    def attention_forward(self, layer: Layer) -> Any:
        """The base on wrong inputs, then with wrong outputs."""
        outputs = list(get(BASE).attention_forward(self.wrong_input(layer)))
        self.wrong_output(layer, outputs)
        return tuple(outputs)

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Tensor | None, *done: Tensor
    ) -> Any:
        """The base, then with wrong gradients."""
        got = list(get(BASE).attention_backward(layer, grad_out, grad_logits, *done))
        self.wrong_gradient(layer, grad_out, grad_logits, done, got)
        return tuple(got)

    def wrong_input(self, given: Layer) -> Layer:
        """What the kernel computes on instead of what it was given."""
        return given

    def wrong_output(self, given: Layer, outputs: list[Tensor]) -> None:
        """Replace out, new index, new logits, logsumexp in place."""

    def wrong_gradient(
        self,
        layer: Layer,
        grad_out: Tensor,
        grad_logits: Tensor | None,
        done: tuple[Tensor, ...],
        got: list[Any],
    ) -> None:
        """Replace gradients of q, k, v, bias, logits in place."""


def breaks(hook: str, fails: str, name: str = "") -> Callable[[Callable[..., Any]], type[Mutant]]:
    """Make the decorated function a mutant that has it in place of `hook`; the check `fails` must find it."""

    def made(function: Callable[..., Any]) -> type[Mutant]:
        body = {hook: staticmethod(function), "fails": fails, "__doc__": function.__doc__}
        return type(name or function.__name__, (Mutant,), body)

    return made


@dataclass(frozen=True)
class Planted:
    """One wrong kernel: what is wrong with it, on which inputs it is shown, and the guard that must see it.

    `step` names the layer of `kernels.LAYERS`, or is "sddmm" or "ties". On those inputs no other guard sees it: with
    this one disabled it survives.
    """

    name: str
    guard: str
    fails: str
    step: str
    mutant: type[Mutant]
    needs_gpu: bool = False
