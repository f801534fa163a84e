"""The torch.library fragment that the ops are defined in, and what they share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pft_bench", "DEF")


def define(schema: str, implementation: Callable[..., object]) -> None:
    """Define an op and its one implementation, which serves every device: the backend argument chooses kernels."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, key)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast: the ops keep their sums in float32, which autocast would take from plain PyTorch."""
    return torch.autocast(tensor.device.type, enabled=False)


def unit_last_stride(tensor: Tensor) -> Tensor:
    """`tensor`, copied only when neighbours along its last dimension do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
