"""Checking an index and bringing it into the form that kernels read; an index that is checked once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..common.native import load_native
from ..reference import index_dtype
from ._autograd import InDims
from ._library import define, is_plain
from .validate import INDEX_DTYPES, describe, require_count, require_index, require_same, require_shape

try:
    _cpu: Any = load_native("_cpu")
    _cpu.isa()
except (ImportError, RuntimeError):  # not fit for use: the check below is the same, slower
    _cpu = None


class Index:
    """An index [..., N, K] that is known to be good: checked once, here, and never again. It cannot be changed.

    Every op that takes an index takes one of these, and then costs what its kernel costs. A tensor is checked at
    every call: on the way by the products of the `cpu` backend, in a pass of its own elsewhere and where gradients
    are wanted.

    Args:
        index: kept keys [..., N, K], int16/int32/int64, distinct within a row. It is copied.
        num_keys: M, the number of keys that may be named.

    Raises:
        ValueError: `index` is no such tensor, or has an entry outside 0..num_keys-1 or twice in a row.
    """

    _places: Tensor
    num_keys: int
    """M, the number of keys."""

    def __init__(self, index: Tensor, num_keys: int) -> None:
        if (
            not isinstance(index, Tensor)
            or index.dim() < 2
            or index.dtype not in INDEX_DTYPES
            or index.layout != torch.strided
        ):
            raise ValueError(f"index must be [..., N, K] int16/int32/int64, got {describe(index)}")
        self.__dict__["num_keys"] = require_count("num_keys", num_keys, 0)
        self.__dict__["_places"] = checked_index(index, num_keys)

    @classmethod
    def _known(cls, places: Tensor, num_keys: int) -> Index:
        """The index `places`, which is checked, contiguous, of the right dtype and nobody else's."""
        made = cls.__new__(cls)
        made.__dict__.update(_places=places, num_keys=num_keys)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Index cannot be changed: make a new one instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Index cannot be changed: make a new one instead of deleting {name}")

    @property
    def shape(self) -> torch.Size:
        """[..., N, K]."""
        return self._places.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._places.device

    @cached_property
    def ascends(self) -> bool:
        """Whether the keys of every row ascend, as a chain hands them on."""
        return bool((self._places[..., 1:] > self._places[..., :-1]).all())

    def tensor(self) -> Tensor:
        """A copy [..., N, K] of the index, int64, to do with as you like."""
        return self._places.to(torch.int64, copy=True)

    def to(self, device: torch.device | str) -> Index:
        """The same index on another device."""
        return self._known(self._places.to(device), self.num_keys)

    def __repr__(self) -> str:
        return f"Index({list(self.shape)} of {self.num_keys} keys, on {self.device})"


# What PyTorch takes apart (arguments of vmap, of checkpointed and of exported functions) it can take apart and put
# together again.
pytree.register_pytree_node(
    Index,
    lambda index: ([index._places], index.num_keys),
    lambda places, num_keys: Index._known(next(iter(places)), num_keys),
    serialized_type_name="pft_bench.Index",
)


def places_of(
    index: Tensor | Index, num_keys: int, like_name: str, like: Tensor, shape: Sequence[int | None]
) -> Tensor:
    """The tensor [B, N, K] of an `index` into `num_keys` keys; its entries are known to be good in an `Index` alone.

    It must be where `like` is and have `shape`, in which None is any K.
    """
    held = index._places if isinstance(index, Index) else require_index(index, "[B, N, K]")
    found = held.shape
    batch, queries, kept = shape
    if (
        len(found) != 3
        or found[0] != batch
        or found[1] != queries
        or (kept is not None and found[2] != kept)
        or held.device != like.device
    ):
        _refuse(held, like_name, like, shape)
    if isinstance(index, Index) and index.num_keys != num_keys:
        raise ValueError(f"index must be an Index of {num_keys} keys, got one of {index.num_keys}")
    return held


def _refuse(held: Tensor, like_name: str, like: Tensor, shape: Sequence[int | None]) -> None:
    """Say what is wrong."""
    require_index(held, "[B, N, K]")
    require_same("index", held, like_name, like, dtype=False)
    wanted = [found if size is None else size for size, found in zip(shape, held.shape, strict=True)]
    require_shape("index", held, wanted, "[B, N, K]")


def checked_index(index: Tensor, num_keys: int) -> Tensor:
    """A contiguous int16 (int32 beyond 32767 keys) copy of `index` [..., N, K].

    Raises ValueError for an entry outside 0..num_keys-1 and for an entry that occurs twice in its row.
    """
    if is_plain((index,)):
        return _checked_index(index, num_keys)
    return torch.ops.pft_bench.checked_index(index, num_keys)


def _checked_index(index: Tensor, num_keys: int) -> Tensor:
    index = index.contiguous()
    made = torch.empty(index.shape, dtype=index_dtype(num_keys), device=index.device)
    if index.numel() == 0:
        return made
    if index.device.type == "cpu" and _cpu is not None:
        fault = _copy_or_find_fault(index, num_keys, made)
    else:
        fault = _find_fault(index, num_keys)
        if fault is None:
            made.copy_(index)
    if fault is not None:
        row, place, kind = fault
        value = int(index.flatten(0, -2)[row, place])
        where = [int(i) for i in torch.unravel_index(torch.tensor(row), index.shape[:-1])] + [place]
        problem = f"is outside 0..{num_keys - 1}" if kind == "range" else "occurs twice in its row"
        raise ValueError(
            f"index must hold distinct keys in 0..{num_keys - 1}, got {value} at {where}: it {problem}"
        )
    return made


Fault = tuple[int, int, str]
"""The first bad entry as (row, place, "range" or "duplicate"), rows counted over all leading dimensions."""


def _copy_or_find_fault(index: Tensor, num_keys: int, to: Tensor) -> Fault | None:
    """Check and copy in one pass."""
    kept = index.shape[-1]
    found = _cpu.index_error(
        index.data_ptr(),
        index.element_size(),
        index.numel() // kept,
        kept,
        num_keys,
        torch.get_num_threads(),
        to.data_ptr(),
        to.element_size(),
    )
    return None if found is None else (found[0], found[1], found[3])


def _find_fault(index: Tensor, num_keys: int) -> Fault | None:
    rows = index.flatten(0, -2)
    outside = (rows < 0) | (rows >= num_keys)
    if bool(outside.any()):
        row, place = outside.nonzero()[0].tolist()
        return row, place, "range"
    ordered, places = rows.sort(dim=-1, stable=True)
    twice = ordered[:, 1:] == ordered[:, :-1]
    if bool(twice.any()):
        row, place = twice.nonzero()[0].tolist()
        return row, int(places[row, place + 1]), "duplicate"
    return None


define("checked_index(Tensor index, int num_keys) -> Tensor", _checked_index)


@torch.library.register_fake("pft_bench::checked_index")
def _(index: Tensor, num_keys: int) -> Tensor:
    return torch.empty(index.shape, dtype=index_dtype(num_keys), device=index.device)


@torch.library.register_vmap("pft_bench::checked_index")
def _(info: Any, in_dims: InDims, index: Tensor, num_keys: int) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return torch.ops.pft_bench.checked_index(index.movedim(in_dims[0], 0), num_keys), 0
