"""The torch.library fragment that the ops are defined in, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("pft_bench", "DEF")


def define(schema: str, implementation: Callable[..., object]) -> None:
    """Define an op and its one implementation, which serves every device: the backend argument chooses kernels."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, key)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast: the ops keep their sums in float32, which autocast would take from plain PyTorch."""
    return torch.autocast(tensor.device.type, enabled=False)


def unit_last_stride(tensor: Tensor) -> Tensor:
    """`tensor`, copied only when neighbours along its last dimension do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def is_differentiated(inputs: Iterable[object]) -> bool:
    """Whether a derivative of any kind is wanted with respect to one of the inputs."""
    if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def dispatched(name: str, *inputs: object) -> Any:
    """What the op `name` returns, by way of PyTorch's dispatcher."""
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            f"ONNX has no operator for pft_bench::{name}: export a model with backend='dense', which is made of "
            "PyTorch's own"
        )
    return getattr(torch.ops.pft_bench, name)(*inputs)


_USUAL_KEYS = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
).raw_repr()
_dispatched_keys = torch._C._dispatch_tls_local_include_set
_function_modes = torch._C._len_torch_function_stack
_is_profiled = torch._C._autograd._profiler_enabled


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether an op on these may call its kernel at once, because nobody would see the difference.

    What the dispatcher is there for must be absent: compilers and tracers, modes (fake tensors, FLOP counters),
    transforms, profilers, derivatives, tensors of other classes. The way through it costs as much as a small kernel.
    """
    if (
        torch.compiler.is_compiling()
        or _dispatched_keys().raw_repr() & ~_USUAL_KEYS
        or _function_modes()
        or _is_profiled()
        or forward_ad._current_level >= 0
    ):
        return False
    differentiates = torch.is_grad_enabled()
    for x in tensors:
        kind = type(x)
        if (kind is not Tensor and kind is not torch.nn.Parameter) or (differentiates and x.requires_grad):
            return False
    return True


def is_eager(x: Tensor) -> bool:
    """Whether `x` is a tensor like any other, and no compiler, tracer, transform or forward derivative looks on."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    return not (
        torch._C._get_tracing_state()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
