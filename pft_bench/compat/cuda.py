"""torch.cuda on a machine without a GPU: what means nothing there does nothing, what asks for a GPU says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from .devices import Patch
from .parallel import parallel_patches
from .refusal import refusal, refused

# What tells the truth here: there is no GPU.
_TRUE = {
    *("is_available", "device_count", "is_initialized", "is_bf16_supported", "is_tf32_supported"),
    *("get_arch_list", "get_gencode_flags", "has_half", "has_magma", "default_generators"),
    "current_accelerator",  # None
    *("CudaError", "DeferredCudaCallError", "StreamContext", "stream", "device_of"),
}
# Parts of torch.cuda whose functions are named there, too, or only there.
_PARTS = ("memory", "random", "streams", "graphs", "nvtx", "profiler", "nccl", "tunable", "jiterator")
# What scripts use though its name says that it is torch's own: recordings of memory, and time to spend on a GPU.
_PRIVATE = {
    *("_record_memory_history", "_snapshot", "_dump_snapshot", "_save_segment_usage", "_save_memory_usage"),
    *("_set_allocator_settings", "_sleep"),
}


def _nothing() -> Callable[..., None]:
    """What there is to do on a CPU, whose work is done when a call returns; each time another function.

    torch.compile keeps rules by function, and takes one that has two names for a mistake.
    """
    return lambda *_, **__: None


def _no_devices() -> bool:
    return False


class _Here(contextlib.ContextDecorator):
    """`with torch.cuda.device(0):` on the CPU."""

    def __init__(self, device: Any = None) -> None:
        self.idx = self.prev_idx = 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _seeding() -> Callable[[int], None]:
    def seed_here(seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would come back here

    return seed_here


def _state(device: Any = None) -> Tensor:
    return torch.get_rng_state()


def _set_state(new_state: Tensor, device: Any = None) -> None:
    torch.set_rng_state(new_state)


def _set_states(new_states: Any) -> None:
    for state in new_states:
        torch.set_rng_state(state)


_INSTEAD: dict[str, Any] = {
    "synchronize": _nothing(),
    "set_device": _nothing(),
    "init": _nothing(),
    "ipc_collect": _nothing(),
    "empty_cache": _nothing(),
    "set_sync_debug_mode": _nothing(),
    "current_device": lambda: 0,
    "is_current_stream_capturing": lambda: False,
    "device": _Here,
    # One generator draws for all devices, the CPU's.
    "manual_seed": _seeding(),
    "manual_seed_all": _seeding(),
    "seed": lambda: torch.default_generator.seed(),
    "seed_all": lambda: torch.default_generator.seed(),
    "initial_seed": lambda: torch.default_generator.initial_seed(),
    "get_rng_state": _state,
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    "set_rng_state": _set_state,
    "set_rng_state_all": _set_states,
}


# What torch.accelerator has that is done on a CPU.
_DONE = ("synchronize", "set_device_index", "empty_cache", "empty_host_cache")


def _refused_type(kind: type, name: str) -> type:
    """A type of which nothing can be made; annotations and isinstance still take it."""

    class Meta(type):
        def __call__(cls, *_: Any, **__: Any) -> NoReturn:
            raise refusal(name)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, kind)

    return Meta(kind.__name__, (), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _in_place_of(value: Any, name: str) -> Any:
    return _refused_type(value, name) if isinstance(value, type) else refused(name)


def _public(module: ModuleType) -> list[str]:
    """What `module` offers: the names it lists, those it defines without listing them, and `_PRIVATE`."""
    listed = {name for name in getattr(module, "__all__", ()) if isinstance(name, str)}
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    return [name for name in sorted(listed | defined | _PRIVATE) if hasattr(module, name)]


def _accelerator_patches() -> Iterator[Patch]:
    """torch.accelerator, by which newer scripts name the GPU: that there is none, it says itself."""
    here = torch.accelerator
    for name in _DONE:
        yield here, name, _nothing()
    yield here, "current_device_index", lambda: 0
    for name in _public(here):
        if name not in (*_TRUE, *_DONE, "current_device_index"):
            yield here, name, _in_place_of(getattr(here, name), f"torch.accelerator.{name}")


def cuda_patches() -> Iterator[Patch]:
    """All of torch.cuda: kept where it tells the truth, replaced where a CPU can do it, else refused by name."""
    cuda = torch.cuda
    yield cuda, "is_available", _no_devices
    yield cuda, "device_count", lambda: 0
    yield (
        cuda,
        "_lazy_init",
        refused("what this call asks of CUDA"),
    )  # whatever else would begin to use a GPU
    yield from _accelerator_patches()
    parts = [getattr(cuda, name) for name in _PARTS if hasattr(cuda, name)]
    for part in (cuda, *parts):
        for name in _public(part):
            value = getattr(part, name)
            if name in _INSTEAD:
                yield part, name, _INSTEAD[name]
            elif name.endswith(("Tensor", "Storage")):
                if hasattr(torch, name):
                    yield part, name, getattr(torch, name)
            elif callable(value) and name not in _TRUE:
                yield part, name, _in_place_of(value, f"{part.__name__}.{name}")
    for name in ("Stream", "Event"):
        if hasattr(torch, name):
            yield torch, name, _in_place_of(getattr(torch, name), f"torch.{name}")
    fork = torch.random.fork_rng
    yield torch.random, "fork_rng", lambda devices=None, enabled=True, *_, **__: fork([], enabled)
    yield torch.Tensor, "record_stream", refused("Tensor.record_stream")
    yield from parallel_patches()
