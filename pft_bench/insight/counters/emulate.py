"""Runs the launches of one layer or product in the counting emulator, at one window of the problem's shape."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...backends.base import cleared
from ...backends.cuda_emu import CudaEmulatorBackend
from ...harness.cases.layer import output_gradient
from ...harness.problem import Problem
from ...reference import attention
from ..kernel_table import ARCHITECTURES
from .chips import Chip
from .counted import CountedLaunch

PRODUCTS = ("sddmm", "spmm", "spmm_transpose")
SAMPLED = 8
"""Every so many-th block of a window-head is emulated, and always the first."""


@dataclass(frozen=True)
class Work(Problem):
    """A problem of mode "infer" or "backward" as it is launched."""

    how: str = "auto"
    """The rung: how a sparse layer meets its candidates, or what a product runs; auto: as the launchers choose."""

    @property
    def backward(self) -> bool:
        """Whether it is a layer's backward pass."""
        return self.mode == "backward"

    @property
    def title(self) -> str:
        """One line for a table."""
        how = f" {self.how}" if self.how != "auto" else ""
        if self.op in PRODUCTS:
            return f"{self.op} {self.kept}{how}"
        name = "backward" if self.backward else "layer"
        return f"{name} {self.candidates} -> {self.kept}{how}"


class CountingBackend(CudaEmulatorBackend):
    """The kernels in the emulator that counts; what they compute with some blocks left out is not complete."""

    name = "cuda-count"
    module = "_cuda_count"

    def __init__(self, batch: int = 0, rung: str | None = None) -> None:
        super().__init__(rung)
        self._batch = batch

    def bias_row_blocks(self, window_heads: int, queries: int) -> int:
        """As the whole problem has them, not the part of it that runs."""
        return super().bias_row_blocks(self._batch or window_heads, queries)


def why_not() -> str | None:
    """Why nothing can be counted here; None where it can."""
    return CountingBackend().available()


def native_module() -> ModuleType:
    """The module that counts; RuntimeError says why there is none."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"the counting emulator is not available: {reason}")
    return importlib.import_module("pft_bench._cuda_count")


def module_path() -> Path:
    """Where the module that counts lies: its code addresses are relative to it."""
    return Path(str(native_module().__file__))


def count_launches(
    work: Work,
    chip: Chip,
    *,
    window_heads: int | None = 1,
    stride: int | None = None,
    most_events: int = 8 << 20,
) -> list[CountedLaunch]:
    """Counts of every launch of `work`, in order, on the first `window_heads` of one window (None: all of its heads).

    Limits of shared memory and the number of multiprocessors are the chip's, so that the launchers choose as they would
    there. `stride`: of each launch's blocks every so many-th runs; None: SAMPLED, 1 where a window-head is one block.
    """
    native = native_module()
    one = replace(work, windows=1)
    backend = CountingBackend(work.batch, None if work.how == "auto" else work.how)
    call = _prepare(one, backend)
    parts = 1 if window_heads is None else max(1, one.batch // window_heads)
    limit = ARCHITECTURES[chip.arch].shared_limit
    # as many multiprocessors for each window-head as the whole problem leaves it
    share = max(1, math.ceil(chip.multiprocessors * one.batch / work.batch))
    native.configure(
        shared_limit=limit,
        multiprocessors=share,
        parts=parts,
        stride=SAMPLED if stride is None else stride,
        most_events=most_events,
    )
    native.take_counts()
    try:
        with cleared():  # by blocks that do not run
            call()
        found = native.take_counts()
    finally:
        native.configure()
    launches = []
    for counted in found:
        counted["blocks"] = max(1, counted["blocks"] // parts)
        launches.append(CountedLaunch.of(counted, work.dtype))
    return launches


def _prepare(work: Work, backend: Any) -> Callable[[], object]:
    """The call that launches, on inputs that are there already: what is computed before is not counted."""
    if work.op in PRODUCTS:
        inputs = work.inputs()
        more = (work.tokens,) if work.op == "spmm_transpose" else ()
        return lambda: getattr(backend, work.op)(*inputs.values(), *more)
    layer = work.layer()
    if not work.backward:
        return lambda: backend.attention_forward(layer)
    floats = layer.map(lambda t: t.float() if t.is_floating_point() else t)
    out, new_index, new_logits, lse = attention(floats)
    out = out.to(layer.q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    grad_out = output_gradient(layer)
    handed = torch.ones_like(new_logits) if new_logits.shape[-1] else None
    return lambda: backend.attention_backward(
        layer, grad_out, handed, new_index.contiguous(), out, lse.contiguous()
    )
