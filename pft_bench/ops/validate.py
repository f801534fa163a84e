"""Argument checks of the public ops: every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INDEX_DTYPES = (torch.int16, torch.int32, torch.int64)


def describe(value: object) -> str:
    """What came, for an error message: shape, dtype and device of a tensor, or the type of anything else.

    The value stands beside its type where it is short; nobody reads the numbers of a tensor within a tuple.
    """
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    kind = type(value).__name__
    if isinstance(value, tuple | list | dict | set | frozenset):
        return f"a {kind} of {len(value)}"
    text = repr(value)
    return f"{kind} {text}" if len(text) <= 80 and "\n" not in text else f"an object of type {kind}"


def require_tensor(name: str, value: object, layout: str) -> Tensor:
    """`value` if it is a strided floating-point tensor with the dimensions of `layout` ("[B, N, D]")."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a {layout} floating-point tensor, got {describe(value)}")
    if value.dim() != layout.count(",") + 1 or not value.is_floating_point() or value.layout != torch.strided:
        kind = "" if value.layout == torch.strided else f" ({value.layout})"
        raise ValueError(f"{name} must be {layout} floating-point, got {describe(value)}{kind}")
    return value


_FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def require_pair(
    first_name: str, first: Tensor, second_name: str, second: Tensor, layouts: tuple[str, str]
) -> None:
    """Raise unless both are strided floating-point tensors of three dimensions, on one device, of one dtype."""
    if (
        type(first) is Tensor
        and type(second) is Tensor
        and first.ndim == second.ndim == 3
        and first.dtype == second.dtype
        and first.dtype in _FLOATS
        and first.device == second.device
        and first.layout == second.layout == torch.strided
    ):
        return  # the usual case, in the time that it may take
    require_tensor(first_name, first, layouts[0])
    require_tensor(second_name, second, layouts[1])
    require_same(second_name, second, first_name, first)


def require_index(value: object, layout: str) -> Tensor:
    """`value` if it is an integer tensor with the dimensions of `layout`; its values are checked elsewhere."""
    if (
        not isinstance(value, Tensor)
        or value.dim() != layout.count(",") + 1
        or value.dtype not in INDEX_DTYPES
        or value.layout != torch.strided
    ):
        raise ValueError(f"index must be {layout} int16/int32/int64, got {describe(value)}")
    return value


def require_shape(name: str, value: Tensor, expected: Sequence[int], layout: str, why: str = "") -> None:
    """Raise unless `value` has the shape `expected`, which `layout` names; `why` says where its sizes come from."""
    if value.shape != tuple(expected):
        raise ValueError(
            f"{name} must be {layout} = {list(expected)}, got {describe(value)}{why and f' ({why})'}"
        )


def require_same(name: str, value: Tensor, like_name: str, like: Tensor, *, dtype: bool = True) -> None:
    """Raise unless `value` is on the device of `like` and, where `dtype` is set, of its dtype."""
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like {like_name}, got {describe(value)}")
    if dtype and value.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} like {like_name}, got {describe(value)}")


def require_count(name: str, value: object, low: int) -> int:
    """`value` if it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {describe(value)}")
    return value


def require_number(name: str, value: object) -> float:
    """`value` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {describe(value)}")
    return float(value)


def require_nonempty(name: str, size: int, tensor: Tensor) -> None:
    """Raise when a dimension that must not be empty is."""
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {describe(tensor)}")
