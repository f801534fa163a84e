"""A plug-in with kernels that go wrong in every way, and a model so small that a sweep of it takes seconds.

Only `sddmm` is planted, and one sparse layer: what else these backends compute is the CPU backend's. Peers of other
authors are planted where spandrel would have them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pft_bench.backends import Layer, register
from pft_bench.backends.cpu import CpuBackend
from pft_bench.harness.selftest.cheating import TINY
from pft_bench.model import PRESETS

PRESETS["tiny_x2"] = TINY


@register
class OutOfMemory(CpuBackend):
    """Takes memory until there is no more."""

    name = "planted-oom"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        taken = [torch.empty(1 << 26, dtype=torch.uint8) for _ in range(1 << 10)]
        return super().sddmm(q, k, index) + len(taken)


@register
class Segfault(CpuBackend):
    """Reads address 0."""

    name = "planted-segfault"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        ctypes.string_at(0)
        return super().sddmm(q, k, index)

    def attention_forward(self, layer: Layer) -> Any:
        if layer.index is not None:  # a dense step is as it should be
            ctypes.string_at(0)
        return super().attention_forward(layer)


@register
class Abort(CpuBackend):
    """Says why and aborts, once its check is behind it: in a timed call."""

    name = "planted-abort"
    calls = 0

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 7:
            os.write(2, b"planted: the queue is full\n")
            os.abort()
        return super().sddmm(q, k, index)


@register
class Hang(CpuBackend):
    """Never returns."""

    name = "planted-hang"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        while True:
            time.sleep(60)


@register
class Wrong(CpuBackend):
    """Off by a relative 1e-4."""

    name = "planted-wrong"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        return super().sddmm(q, k, index) * 1.0001


@register
class KillsServer(CpuBackend):
    """Kills the process that its worker was forked from."""

    name = "planted-orphan"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        os.kill(os.getppid(), 9)
        time.sleep(60)
        return super().sddmm(q, k, index)


@register
class Leaves(CpuBackend):
    """Tells its process id and waits to be killed with its supervisor."""

    name = "planted-sleeper"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        Path(os.environ["PLANTED_PID_FILE"]).write_text(str(os.getpid()))
        time.sleep(60)
        return super().sddmm(q, k, index)


class Enlarges(nn.Module):
    """A peer that does its work."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2)


class Aborts(Enlarges):
    """One that ends its process in its second call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            os.abort()
        return super().forward(x)


class CannotBeMade(Enlarges):
    """One that ends its process before it has computed anything."""

    def __init__(self) -> None:
        os._exit(3)


for peer in (Enlarges, Aborts, CannotBeMade):
    name = f"spandrel.architectures.{peer.__name__}"
    sys.modules[name] = ModuleType(name)
    setattr(sys.modules[name], peer.__name__, peer)
