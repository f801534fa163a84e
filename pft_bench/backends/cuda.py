"""The `cuda` backend: hand-written kernels (kernels/cuda) for GPUs from compute capability 8.0."""

from __future__ import annotations

import torch

from ._cuda_launch import CudaLaunches, missing_module

_BUILD = (
    "where there is an NVIDIA GPU, reinstall from source with nvcc (CUDA 13) on PATH, or without a toolkit: "
    "pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' "
    "'nvidia-cuda-cccl==13.0.*' 'nvidia-nvvm==13.0.*' && PFT_CUDA=pypi pip install -e ."
)


class CudaBackend(CudaLaunches):
    """CUDA tensors, on their device and the current stream."""

    name = "cuda"
    module = "_cuda"
    summary = "hand-written CUDA kernels, float32, float16 and bfloat16, deterministic gradients"
    devices = frozenset({"cuda"})

    def available(self) -> str | None:
        """None where the module was built, the driver works, and torch sees the device."""
        if isinstance(self._native, Exception):
            return f"{missing_module(self._native)}; {_BUILD}"
        reason = self._native.why_unavailable()
        if reason:
            return f"{reason}; needs an NVIDIA GPU and its driver"
        if not torch.cuda.is_available():
            return "this torch has no CUDA; install a CUDA build of the same version"
        return None

    def place(self, device: torch.device) -> tuple[int, int]:
        """The tensors' device and torch's current stream there."""
        number = torch.cuda.current_device() if device.index is None else device.index
        return number, torch.cuda.current_stream(device).cuda_stream
