"""Several GPUs on a machine without one: the one model works, and processes of their own talk through gloo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .devices import Patch
from .refusal import refusal, refused

# They copy a model, or what it computes, to one GPU after another.
_COPIES = ("replicate", "scatter", "gather", "parallel_apply")


def parallel_patches() -> Iterator[Patch]:
    """torch.nn.parallel and torch.distributed, without the numbers of devices that scripts give them."""
    for name in _COPIES:
        yield nn.parallel, name, refused(f"torch.nn.parallel.{name}")
    yield nn.parallel, "data_parallel", _data_parallel
    if not torch.distributed.is_available():
        return
    spread = nn.parallel.DistributedDataParallel
    yield spread, "__init__", _without(spread.__init__, "device_ids", "output_device", positions=2)
    yield torch.distributed, "barrier", _without(torch.distributed.barrier, "device_ids")
    start = torch.distributed.init_process_group
    yield torch.distributed, "init_process_group", _init_process_group(start)


def _data_parallel(module: nn.Module, inputs: Any, *_: Any, module_kwargs: Any = None, **__: Any) -> Any:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return module(*given, **(module_kwargs or {}))


def _without(function: Callable[..., Any], *names: str, positions: int | None = None) -> Callable[..., Any]:
    """`function` without its arguments of these names; given by position, they stand at `positions`."""

    @functools.wraps(function)
    def here(*args: Any, **keywords: Any) -> Any:
        given = [
            None if positions and positions <= at < positions + len(names) else arg
            for at, arg in enumerate(args)
        ]
        return function(*given, **{name: arg for name, arg in keywords.items() if name not in names})

    return here


def _init_process_group(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def here(backend: Any = None, *args: Any, device_id: Any = None, **keywords: Any) -> None:
        by_device = dict(part.split(":", 1) for part in str(backend).lower().split(",") if ":" in part)
        chosen = by_device.get("cpu", backend)
        if "nccl" in str(chosen).lower():
            raise refusal("NCCL (backend='gloo' works on a CPU)")
        start(chosen, *args, **keywords)

    return here
