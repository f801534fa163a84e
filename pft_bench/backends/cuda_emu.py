"""The `cuda-emu` backend: the CUDA kernels run on the CPU, with a race detector. For checking, never for timing."""

from __future__ import annotations

import torch

from ._cuda_launch import CudaLaunches, missing_module


class CudaEmulatorBackend(CudaLaunches):
    """CPU tensors through the same bindings and launchers as on a GPU."""

    name = "cuda-emu"
    module = "_cuda_emu"
    summary = "the CUDA kernels in an emulator with a race detector: proves them without a GPU, never timed"
    devices = frozenset({"cpu"})
    timed = False

    def available(self) -> str | None:
        """None where the module was built (-DPFT_EMULATOR=ON, the default of a source install)."""
        if isinstance(self._native, Exception):
            what = missing_module(self._native)
            return f"{what}; reinstall from source: pip install -C cmake.define.PFT_EMULATOR=ON -e ."
        return None

    def place(self, device: torch.device) -> tuple[int, int]:
        """Launches run at once, on the calling thread."""
        return 0, 0
