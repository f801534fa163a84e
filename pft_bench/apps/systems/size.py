"""Parameters and multiply-accumulates of a model, without computing with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...model import PFT, preset, published_macs
from .facts import PAPER_LR_HW, System
from .peers import make_system


@dataclass(frozen=True)
class Size:
    """Parameters and multiply-accumulates of a system for an output of 1280 x 720."""

    parameters: int
    macs: int
    """By the authors' convention where it is known, else as counted."""
    counted: int
    """What PyTorch's counter sees of one pass."""

    def difference(self, system: System) -> str:
        """Of `macs` from what is published: "exact", percent, or "-" where nothing is."""
        said = system.published
        if self.macs == said.exact_macs:
            return "exact"
        stated = said.exact_macs or (said.macs_t or 0) * 10**12
        return f"{self.macs / stated - 1:+.1%}" if stated else "-"


def size_of(system: System) -> Size:
    """Make the model of a system that runs here, and count. Raises PeersMissing where spandrel is not installed."""
    if system.preset is not None:
        config = preset(system.preset)
        model: nn.Module = PFT.from_config(config)
        stated = published_macs(config, *PAPER_LR_HW)
        return Size(parameters(model), stated, macs(model, *PAPER_LR_HW))
    model = make_system(system)
    counted = macs(model, *PAPER_LR_HW)
    known = system.stated_macs
    return Size(parameters(model), counted if known is None else known(*PAPER_LR_HW), counted)


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
