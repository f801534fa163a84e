"""Inputs that change under a kernel: in place, between two calls, to values that nobody can have remembered.

What a row of queries, keys or values holds changes whole: it becomes a random mixture of two rotations of its first
values along the rows. What every entry of an index holds (the index, earlier logits, weights) is larger by far, and
changes at one window-head a call: that one is rotated. The results of a timed call are judged there, so that what was
remembered of any input is wrong where somebody looks. New values are about as cheap as a copy of the small inputs, have
the same distribution, and need one spare copy of all. The tensors' version counters do not move.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...common import entropy
from ..check.result import CheckResult
from .rotations import Drawn, head_of, on_grid, write


class Draw(NamedTuple):
    """Values of all inputs, and the window-head (its place among the leading dimensions) that changed in all.

    A tuple, as `Drawn` and `FirstValues` are: who gets hold of one cannot write to it.
    """

    drawn: tuple[tuple[str, Drawn], ...] = ()
    head: int | None = None

    @property
    def values(self) -> dict[str, Drawn]:
        """By the inputs' names."""
        return dict(self.drawn)

    def but(self, changed: Mapping[str, Drawn]) -> Draw:
        """With others for some of the inputs."""
        return Draw(tuple({**self.values, **changed}.items()), self.head)


class Inputs:
    """Tensors that kernels are given, and a private copy of their first values.

    Args:
        given: name -> tensor; all rows lie along the last dimension but one.
        rotated: names of floating-point inputs that are rotated and not mixed (whole numbers).
        mixed: names of inputs whose entries keep their sign and their rows' sums; others keep their variance.
        by_entry: names of inputs with a value for each entry of an index: they change at one window-head a call.
    """

    __slots__ = ("_by_entry", "_first", "_grid", "_mixed", "_now", "_rotated", "given")

    def __init__(
        self,
        given: Mapping[str, Tensor],
        *,
        rotated: Iterable[str] = (),
        mixed: Iterable[str] = (),
        by_entry: Iterable[str] = ("a", "index", "logits"),
    ) -> None:
        self.given = dict(given)
        self._rotated, self._mixed, self._by_entry = frozenset(rotated), frozenset(mixed), frozenset(by_entry)
        self._first = {name: FirstValues.of(tensor) for name, tensor in given.items()}
        self._grid: dict[str, Tensor] = {}
        self._now = Draw()

    def holds(self) -> tuple[object, ...]:
        """What only the harness changes: the tensors, the copies, what was drawn."""
        return (*self.given.items(), *self._first.items(), self._now)

    def put_back(self, held: tuple[Any, ...]) -> None:
        """What `holds` gave before somebody changed it."""
        middle = len(held) // 2
        self.given, self._first, self._now = dict(held[:middle]), dict(held[middle:-1]), held[-1]

    @property
    def now(self) -> Draw:
        """What was drawn last."""
        return self._now

    def renew_late(self, names: Iterable[str]) -> Draw:
        """Other values for these once more: what was computed ahead from those before is wrong."""
        return self._apply(self._now.but({name: self._draw(name, None) for name in names}))

    def renew(self) -> Draw:
        """New values for all of them; what to `recall` them by."""
        heads = {math.prod(t.shape[:-2]) for name, t in self.given.items() if name in self._by_entry}
        head = entropy.below(count) if len(heads) == 1 and (count := heads.pop()) else None
        return self._apply(Draw(tuple((name, self._draw(name, head)) for name in self.given), head))

    def recall(self, draw: Draw) -> Draw:
        """Write the values of an earlier `renew` to the tensors again, even if somebody has overwritten them."""
        self._now = Draw()
        return self._apply(draw)

    def _apply(self, draw: Draw) -> Draw:
        """What has its values already is left as it is."""
        self._grid, before = {}, self._now.values
        for name, values in draw.drawn:
            write(self.given[name], self._first[name].tensor(), values, before.get(name))
        self._now = draw
        return draw

    def rewrite(self) -> None:
        """Write the present values again, in case somebody has overwritten them."""
        self.recall(self._now)

    def restore(self) -> None:
        """The first values."""
        self.recall(Draw(tuple((name, Drawn()) for name in self.given)))

    def steps(self) -> Iterator[str]:
        """Change one after the other. All values lie on a grid, so that no sum over a tensor tells that it changed, and
        neither do its first and last elements.
        """
        self._grid = {name: on_grid(copy.tensor()) for name, copy in self._first.items()}
        self._now = Draw()
        for name in self.given:
            self._move(name, Drawn())
        yield "everything"
        for name, tensor in self.given.items():
            rows = tensor.shape[-2]
            inner = rows > 3
            if rows > 1:
                shift = 1 + entropy.below(rows - 1 - 2 * inner)
                self._move(name, Drawn((shift,), inner=inner))
                yield name

    def _move(self, name: str, drawn: Drawn) -> None:
        write(self.given[name], self._grid[name], drawn, None)
        self._now = self._now.but({name: drawn})

    def _draw(self, name: str, head: int | None) -> Drawn:
        tensor = self.given[name]
        rows = max(1, tensor.shape[-2])
        shift, other = entropy.below(rows), entropy.below(rows)
        if name in self._by_entry and head is not None:
            before = self._now.values.get(name, Drawn()).shifts
            shifts = list(before if len(before) > 1 else before * math.prod(tensor.shape[:-2]))
            shifts[head] = (shifts[head] + 1 + entropy.below(max(1, rows - 1))) % rows
            return Drawn(tuple(shifts))
        if not tensor.is_floating_point() or name in self._rotated:
            return Drawn((shift,))
        if name in self._mixed:
            part = entropy.between(0.2, 0.8)
            return Drawn((shift,), other, part, 1.0 - part)
        angle = entropy.between(0.2, 0.8) * math.pi / 2
        return Drawn((shift,), other, math.cos(angle), math.sin(angle))

    def untouched(self) -> CheckResult:
        """A kernel must not write to what it was given, nor to the harness's own copies of it."""
        return self._held_against([(name, None) for name in self.given])

    def glance(self) -> CheckResult:
        """The same of the window-head that changed last and of another one: cheap enough for every sample."""
        parts: list[tuple[str, int | None]] = []
        for name, tensor in self.given.items():
            count = math.prod(tensor.shape[:-2])
            if count:
                last = () if self._now.head is None else (self._now.head % count,)
                parts += [(name, head) for head in {entropy.below(count), *last}]
        return self._held_against(parts)

    def _held_against(self, parts: Iterable[tuple[str, int | None]]) -> CheckResult:
        changed = []
        for name, head in parts:
            if not self._first[name].sound(head):
                changed.append(f"the harness's copy of {name}")
            if not self._is_what_it_was(name, head):
                changed.append(name)
        return CheckResult(
            "inputs untouched",
            math.inf if changed else 0.0,
            ", ".join(changed) and f"{', '.join(changed)} changed",
        )

    def _is_what_it_was(self, name: str, head: int | None) -> bool:
        given = self.given[name].detach()
        first = self._grid[name] if self._grid else self._first[name].tensor()
        drawn = self._now.values.get(name, Drawn())
        if head is not None:
            given, first = head_of(given, head), head_of(first, head)
            drawn = drawn._replace(shifts=drawn.shifts[head % len(drawn.shifts) :][:1])
        wanted = torch.empty_like(given)
        write(wanted, first, drawn, None)
        if torch.equal(given, wanted) or not given.is_floating_point():
            return bool(torch.equal(given, wanted))
        # Not bit for bit: where a mixture is computed in vectors and where one by one depends on the threads.
        unit, size = torch.finfo(given.dtype).eps, float(wanted.abs().max())
        return bool(torch.allclose(given, wanted, rtol=2 * unit, atol=2 * unit * size))


class FirstValues(NamedTuple):
    """The first values of an input, with a digest of each window-head: on a CPU they are `bytes`, which do not change,
    and yet torch writes to them through a tensor that reads them.
    """

    dtype: torch.dtype
    shape: torch.Size
    raw: bytes
    there: Tensor | None
    digests: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> FirstValues:
        """Those that the tensor has now."""
        raw, digests = _bytes(tensor), _digests(tensor)
        if tensor.device.type == "cpu" and tensor.numel():
            return cls(tensor.dtype, tensor.shape, raw.tobytes(), None, digests)
        return cls(tensor.dtype, tensor.shape, b"", tensor.detach().clone(), digests)

    def tensor(self) -> Tensor:
        """To be read."""
        if self.there is not None:
            return self.there
        return torch.frombuffer(self.raw, dtype=self.dtype).view(self.shape)

    def sound(self, head: int | None) -> bool:
        """Whether it is what it was, in one window-head or (None) in all."""
        if head is None:
            return _digests(self.tensor()) == self.digests
        return _crc32(_bytes(head_of(self.tensor(), head))) == self.digests[head]


_crc32 = zlib.crc32


def _digests(tensor: Tensor) -> tuple[int, ...]:
    """One for each window-head."""
    if not tensor.numel():
        return ()
    return tuple(map(_crc32, _bytes(tensor).reshape(math.prod(tensor.shape[:-2]), -1)))


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()


warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
