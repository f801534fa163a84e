"""Whether a stored state has the structure of the present one: names, types, shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def misfits(stored: Any, own: Any, name: str = "") -> Iterator[str]:
    """A sentence for each place where `stored` has another key, type, dtype or shape than `own`; values may differ."""
    where = name or "the state"
    if isinstance(own, Mapping):
        if not isinstance(stored, Mapping):
            yield f"{where} must be a dictionary, got {type(stored).__name__}"
            return
        for key in own:
            inner = f"{name}[{key!r}]"
            if key in stored:
                yield from misfits(stored[key], own[key], inner)
            else:
                yield f"{inner} is missing"
        for key in stored:
            if key not in own:
                yield f"{name}[{key!r}] is not part of it"
    elif isinstance(own, Tensor):
        if not isinstance(stored, Tensor) or _kind(stored) != _kind(own):
            got = _kind(stored) if isinstance(stored, Tensor) else type(stored).__name__
            yield f"{where} must be {_kind(own)}, got {got}"
    elif type(stored) is not type(own):
        yield f"{where} must be of type {type(own).__name__}, got {type(stored).__name__}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
