"""Parameters and multiply-accumulates of a model, without computing with it."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Learned parameters: those that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of matrix products and convolutions for one image, as PyTorch's FLOP counter counts them.

    Nothing is computed: tensors have shapes only, so an image of any size takes seconds and no memory. With
    gradients enabled PFT computes whole layers instead of strips, which is the same work in fewer pieces.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.empty(1, 3, height, width))
    return counter.get_total_flops() // 2
