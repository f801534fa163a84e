"""State of torch that belongs to the whole process: how each piece is read, and how it is brought back."""

from __future__ import annotations

import functools
import gc
from typing import Any

import torch
from torch import library
from torch.utils import _device


def mkldnn() -> tuple[Any, ...]:
    """Its flags; torch does not tell all of them everywhere."""
    found = torch.backends.mkldnn
    return found.enabled, found.deterministic, found.allow_tf32


def set_mkldnn(state: tuple[Any, ...]) -> None:
    """Those that were told."""
    for name, value in zip(("enabled", "deterministic", "allow_tf32"), state, strict=True):
        if value is not None:
            setattr(torch.backends.mkldnn, name, value)


def cuda() -> tuple[Any, ...]:
    """Flags of cuDNN and of matrix products."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32


def set_cuda(state: tuple[Any, ...]) -> None:
    """All of them."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = state


_PRODUCTS = (
    ("generic", "all"),
    *((owner, op) for owner in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)


def precisions() -> tuple[Any, ...]:
    """How exact float32 products are: by the older setting, and by library and operator."""
    each = tuple(torch._C._get_fp32_precision_getter(*part) for part in _PRODUCTS)
    return torch.get_float32_matmul_precision(), each


def set_precisions(state: tuple[Any, ...]) -> None:
    """The older setting first: it writes to some of the others, and cannot be read where they contradict it."""
    torch.set_float32_matmul_precision(state[0])
    for part, value in zip(_PRODUCTS, state[1], strict=True):
        if torch._C._get_fp32_precision_getter(*part) != value:
            torch._C._set_fp32_precision_setter(*part, value)


def deterministic() -> tuple[bool, bool]:
    """Whether deterministic algorithms are asked for, and whether their lack is only warned of."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def set_deterministic(state: tuple[bool, bool]) -> None:
    """Both of it."""
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def flushes_denormals() -> bool:
    """Tried, since torch does not tell."""
    return float(torch.tensor([1e-310], dtype=torch.float64).mul(1.0)) == 0.0


def autocasts() -> tuple[bool, ...]:
    """Of both kinds of devices."""
    return tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def set_autocasts(state: tuple[bool, ...]) -> None:
    """Of both kinds of devices."""
    for kind, enabled in zip(("cpu", "cuda"), state, strict=True):
        torch.set_autocast_enabled(kind, enabled)


def set_default_device(device: torch.device) -> None:
    """Whatever is left of other default devices goes first: torch refuses to leave one that is not where it put it."""
    entered = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    for mode in reversed(entered):
        if not isinstance(mode, _device.DeviceContext):
            torch._C._push_on_torch_function_stack(mode)
    torch._GLOBAL_DEVICE_CONTEXT.device_context = None
    _device.CURRENT_DEVICE = None
    torch.set_default_device(None if device == torch.device("cpu") else device)


def modes() -> tuple[int, int]:
    """Modes of torch that are entered: whatever they do, they see each call of an operator, the harness's too."""
    return _function_modes(), _dispatch_modes()


_function_modes, _dispatch_modes = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack
"""This module's own, which are held: those of torch are not."""


def set_modes(state: tuple[int, int]) -> None:
    """Leave those that have come."""
    while torch._C._len_torch_function_stack() > state[0]:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > state[1]:
        torch._C._pop_torch_dispatch_stack(None)


def overridden() -> frozenset[str]:
    """Operators of torch and of this project for which Python has registered implementations."""
    return _watched_of(frozenset(library._impls))


def overridden_count() -> int:
    """How many implementations Python has registered, of any operators."""
    return len(library._impls)


@functools.lru_cache(2)
def _watched_of(every: frozenset[str]) -> frozenset[str]:
    return frozenset(key for key in every if key.startswith(("aten/", "pft_bench/")))


def drop_overrides(state: frozenset[str]) -> None:
    """Remove implementations that were added, if the library that registered them can be found."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()  # the collector leaves out what is frozen
    try:
        kinds = _with_derived(library.Library)
        for item in [item for item in gc.get_referrers(*kinds) if type(item) in kinds]:
            if getattr(item, "_op_impls", set()) & (overridden() - state):
                library.Library._destroy(item)
    finally:
        if frozen:
            gc.freeze()


def _with_derived(kind: type) -> set[type]:
    """A class and all that inherit it."""
    return {kind}.union(*map(_with_derived, type.__subclasses__(kind)))


def saving_hooks() -> int:
    """Hooks on what each forward pass keeps for its backward pass."""
    taken: list[Any] = []
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks
    while (hooks := top(False)) is not None:
        taken.append(hooks)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    for hooks in reversed(taken):
        torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
    return len(taken)


def drop_saving_hooks(count: int) -> None:
    """Those that have come."""
    for _ in range(saving_hooks() - count):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def set_inference(enabled: bool) -> None:
    """Inference mode."""
    _inference.append(torch._C._InferenceMode(enabled))


_inference: list[Any] = []
"""A mode ends with its object."""


def hooks() -> tuple[int, ...]:
    """Hooks on all modules: each layer of each contender's model calls them."""
    return tuple(map(len, _hook_tables()))


def drop_hooks(state: tuple[int, ...]) -> None:
    """Those that have come."""
    for table, count in zip(_hook_tables(), state, strict=True):
        for key in list(table)[count:]:
            del table[key]


def _hook_tables() -> list[Any]:
    owner = torch.nn.modules.module
    return [
        value
        for name, value in vars(owner).items()
        if name.startswith("_global_") and "hook" in name and isinstance(value, dict)
    ]
