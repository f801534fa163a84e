"""Checking an index and bringing it into the form that kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.native import load_native
from ..reference import index_dtype
from ._library import define

try:
    load_native("_cpu")
    from .. import _cpu
except ImportError:  # never built, or not fit for use: the check below is the same, slower
    _cpu = None  # type: ignore[assignment]


def checked_index(index: Tensor, num_keys: int) -> Tensor:
    """A contiguous int16 (int32 beyond 32767 keys) copy of `index` [..., N, K].

    Raises ValueError for an entry outside 0..num_keys-1 and for an entry that occurs twice in its row.
    """
    return torch.ops.pft_bench.checked_index(index, num_keys)


def _checked_index(index: Tensor, num_keys: int) -> Tensor:
    index = index.contiguous()
    fault = _find_fault(index, num_keys)
    if fault is not None:
        row, place, kind = fault
        value = int(index.flatten(0, -2)[row, place])
        where = [int(i) for i in torch.unravel_index(torch.tensor(row), index.shape[:-1])] + [place]
        problem = f"is outside 0..{num_keys - 1}" if kind == "range" else "occurs twice in its row"
        raise ValueError(
            f"index must hold distinct keys in 0..{num_keys - 1}, got {value} at {where}: it {problem}"
        )
    return index.to(index_dtype(num_keys), copy=True)


def _find_fault(index: Tensor, num_keys: int) -> tuple[int, int, str] | None:
    """The first bad entry as (row, place, "range" or "duplicate"), rows counted over all leading dimensions."""
    if index.numel() == 0:
        return None
    if index.device.type == "cpu" and _cpu is not None:
        found = _cpu.index_error(
            index.data_ptr(),
            index.element_size(),
            index.numel() // index.shape[-1],
            index.shape[-1],
            num_keys,
        )
        return None if found is None else (found[0], found[1], found[3])
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
