"""Calls that compute gradients by autograd: forward and backward, or backward alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .changing_inputs import Inputs
from .changing_work import ChangingWork, Judge


class GradientCall:
    """Gradients of `leaves`, given those of what `forward` returns.

    In mode "train" each call runs both ways; in mode "backward" the first one runs `forward` and keeps its graph, and
    every call goes back through that, until `renew` runs `forward` again.
    """

    def __init__(
        self,
        mode: str,
        forward: Callable[[], list[Tensor]],
        leaves: Sequence[Tensor],
        gradients: Callable[[list[Tensor]], list[Tensor]],
    ) -> None:
        self._backward = mode == "backward"
        self._forward, self._leaves, self._gradients = forward, list(leaves), gradients
        self._kept: tuple[list[Tensor], list[Tensor]] | None = None
        self.made: list[Tensor] = []
        """What the forward pass of the last call returned; empty in mode "backward", where it is not timed."""

    def __call__(self) -> object:
        """The gradients."""
        self.made = []  # its memory may be had again
        if not self._backward:
            made, given = self._both()
            self.made = [item.detach() for item in made]
            return torch.autograd.grad(made, self._leaves, given)
        if self._kept is None:
            self._kept = self._both()
        made, given = self._kept
        return torch.autograd.grad(made, self._leaves, given, retain_graph=True)

    def renew(self) -> None:
        """The leaves have other values: a graph that was kept is one of the old ones."""
        self.made = []
        if self._backward:
            self._kept = None  # before the next one: both at once may not fit
            self._kept = self._both()

    def forget(self) -> None:
        """Let go of the graph, and of what was made."""
        self._kept, self.made = None, []

    def work(self, inputs: Inputs, judge: Judge, *, own: bool) -> ChangingWork:
        """Its inputs change before each call, and those of the backward pass once more after `renew`."""
        return ChangingWork(
            inputs,
            judge,
            after=self.renew,
            at_rest=self.forget,
            late=("grad_out",),
            costly=True,
            own=own,
        )

    def _both(self) -> tuple[list[Tensor], list[Tensor]]:
        made = self._forward()
        return made, self._gradients(made)


def ones_like_index(kept: Tensor | None) -> Tensor | None:
    """A gradient of 1 for each entry that was kept."""
    return None if kept is None else torch.ones((), device=kept.device).expand(kept.shape)
