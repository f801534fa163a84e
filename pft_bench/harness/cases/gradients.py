"""Calls that compute gradients by autograd: forward and backward, or backward alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..measure.contender import Call


def gradient_call(
    mode: str,
    forward: Callable[[], list[Tensor]],
    leaves: Sequence[Tensor],
    gradients: Callable[[list[Tensor]], list[Tensor]],
) -> Call:
    """Gradients of `leaves`, given those of what `forward` returns.

    In mode "train" each call runs both ways; in mode "backward" the first one runs `forward` and keeps its graph, and
    every call goes back through that.
    """
    kept: list[tuple[list[Tensor], list[Tensor]]] = []

    def both() -> tuple[list[Tensor], list[Tensor]]:
        made = forward()
        return made, gradients(made)

    def backward() -> object:
        if not kept:
            kept.append(both())
        made, given = kept[0]
        return torch.autograd.grad(made, list(leaves), given, retain_graph=True)

    def train() -> object:
        made, given = both()
        return torch.autograd.grad(made, list(leaves), given)

    return backward if mode == "backward" else train
