"""A plug-in with kernels that go wrong in every way, and a model so small that a sweep of it takes seconds.

Only `sddmm` is planted: what else these backends compute is the CPU backend's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from pft_bench.backends import register
from pft_bench.backends.cpu import CpuBackend
from pft_bench.harness.measure import roof, timer
from pft_bench.model import PRESETS, PFTConfig

PRESETS["tiny_x2"] = PFTConfig(
    embed_dim=12,
    depths=(2, 2),
    num_heads=3,
    num_topk=(16, 16, 5, 5),
    window_size=4,
    convffn_kernel_size=3,
    mlp_ratio=2,
    upscale=2,
    upsampler="pixelshuffledirect",
)
roof.MATRIX_SIDE, roof.COPY_BYTES = 64, 1 << 20
timer.WARMUP_S = 0.01
gc.collect = lambda *_: 0  # a tenth of a second in a full process, several times a case


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
