"""The `cuda-emu` backend: the CUDA kernels run on the CPU, with a race detector. For checking, never for timing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from ..common.native import load_native
from ._cuda_launch import CudaLaunches, missing_module


def load_module(name: str) -> ModuleType | Exception:
    """A native module, or why it does not load."""
    try:
        return load_native(name)
    except ImportError as error:
        return error


class CudaEmulatorBackend(CudaLaunches):
    """CPU tensors through the same bindings and launchers as on a GPU."""

    name = "cuda-emu"
    summary = "the CUDA kernels in an emulator with a race detector: proves them without a GPU, never timed"
    devices = frozenset({"cpu"})
    timed = False

    def __init__(self, rung: str | None = None) -> None:
        super().__init__(rung)
        self._native = load_module("_cuda_emu")

    def available(self) -> str | None:
        """None where the module was built (-DPFT_EMULATOR=ON, the default of a source install)."""
        if isinstance(self._native, Exception):
            what = missing_module(self._native)
            return f"{what}; reinstall from source: pip install -C cmake.define.PFT_EMULATOR=ON -e ."
        return None

    def native(self) -> Any:
        """The emulator's module."""
        return self._native

    def place(self, device: torch.device) -> tuple[int, int]:
        """Launches run at once, on the calling thread."""
        return 0, 0
