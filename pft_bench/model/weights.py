"""Deterministic generated weights: the same on every machine, from nothing but the names of the parameters."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def generated_weights(model: nn.Module) -> dict[str, Tensor]:
    """Make a state dict for `model` from its keys and shapes, on the CPU, in each entry's dtype.

    Each floating-point entry is drawn from a Philox generator seeded with the CRC-32 of its key, and scaled so that
    activations stay of order one. Integer entries keep their values. Timings, checks and the golden models use these.
    """
    return {
        key: _generate(key, tuple(value.shape)).to(value.dtype)
        if value.is_floating_point()
        else value.cpu().clone()
        for key, value in model.state_dict().items()
    }


def fill_with_generated_weights(model: nn.Module) -> None:
    """Give `model` its `generated_weights`, one entry at a time: no second copy of all of them exists."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(_generate(key, tuple(value.shape)))


def _generate(key: str, shape: tuple[int, ...]) -> Tensor:
    x = np.random.Generator(np.random.Philox(zlib.crc32(key.encode()))).standard_normal(shape)
    if key.endswith("norm.weight") or ".norm1.weight" in key or ".norm2.weight" in key:
        x = 1 + 0.1 * x
    elif "bias_table" in key:
        x = 0.3 * x
    elif len(shape) >= 2:
        x = x / math.sqrt(math.prod(shape[1:]))
    else:
        x = 0.05 * x
    return torch.from_numpy(np.asarray(x))
