"""Scripts that say "cuda" on a machine without a GPU: their tensors stay on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaIsCpu(TorchFunctionMode):
    """Reads the device "cuda" as "cpu" in every call of torch, and ignores `.cuda()` and `.pin_memory()`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func` with other devices."""
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        moved = {key: _on_cpu(value) for key, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **moved)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


@contextmanager
def cuda_is_cpu() -> Iterator[None]:
    """What a script does inside this context happens on the CPU, whatever device it names.

    Covers tensors and modules, `torch.load` (also without a map_location), `torch.cuda.synchronize` and `set_device`.
    Streams, events, memory statistics and NCCL are not covered: scripts that need them need a GPU.
    """
    load, synchronize, set_device = torch.load, torch.cuda.synchronize, torch.cuda.set_device

    @functools.wraps(load)
    def load_here(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1:
            args = (args[0], _on_cpu(args[1]), *args[2:])
        elif kwargs.get("map_location") is None:
            kwargs["map_location"] = "cpu"
        else:
            kwargs["map_location"] = _on_cpu(kwargs["map_location"])
        return load(*args, **kwargs)

    torch.load = load_here
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.set_device = lambda device: None
    try:
        with CudaIsCpu():
            yield
    finally:
        torch.load, torch.cuda.synchronize, torch.cuda.set_device = load, synchronize, set_device
