"""How new values of a tensor come from its first ones: rows are rotated and mixed, in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """Values of one input: ``first * (rows rotated by shift) + second * (rows rotated by other)``.

    `shifts` has one rotation for all of it, or one for each window-head.
    """

    shifts: tuple[int, ...] = (0,)
    other: int = 0
    first: float = 1.0
    second: float = 0.0
    inner: bool = False
    """Whether the first and the last row of each window-head stay: two elements then tell nothing."""


def on_grid(tensor: Tensor) -> Tensor:
    """Multiples of 1/8 of the same shape of distribution: their sums are exact, in any order."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    deviation = float(tensor.double().std()) if tensor.numel() > 1 else 1.0
    return torch.empty_like(tensor).copy_(
        (tensor.double() * (8.0 / (deviation or 1.0))).round().div(8.0).clamp(-16, 16)
    )


def head_of(tensor: Tensor, head: int) -> Tensor:
    """One window-head, without a copy: `head` counts through the leading dimensions."""
    places: list[int] = []
    for size in reversed(tensor.shape[:-2]):
        head, place = divmod(head, size)
        places.insert(0, place)
    return tensor[tuple(places)]


def write(target: Tensor, source: Tensor, drawn: Drawn, before: Drawn | None) -> None:
    """In place, through an alias with a version counter of its own; what is there already is left as it is."""
    if drawn == before:
        return
    into = target.data
    if len(drawn.shifts) == 1:
        _rotate(into, source, drawn)
        return
    old = () if before is None or len(before.shifts) != len(drawn.shifts) else before.shifts
    for head, shift in enumerate(drawn.shifts):
        if not old or old[head] != shift:
            _rotate(head_of(into, head), head_of(source, head), Drawn((shift,)))


def _rotate(into: Tensor, source: Tensor, drawn: Drawn) -> None:
    if drawn.inner:
        for row in (0, -1):
            into[..., row, :].copy_(source[..., row, :])
        into, source = into[..., 1:-1, :], source[..., 1:-1, :]
    for shift, factor, adds in ((drawn.shifts[0], drawn.first, False), (drawn.other, drawn.second, True)):
        rows = into.shape[-2]
        for here, there in (
            (slice(shift, rows), slice(0, rows - shift)),
            (slice(0, shift), slice(rows - shift, rows)),
        ):
            part, taken = into[..., here, :], source[..., there, :]
            if not part.numel() or (adds and not factor):
                continue
            if adds:
                part.add_(taken, alpha=factor)
            elif factor == 1.0:
                part.copy_(taken)
            else:
                torch.mul(taken, factor, out=part)
