"""Inputs that change under a kernel: in place, between two calls, to values that nobody can have remembered.

New values are a random mixture of two rotations of the first ones along the rows, so they are as cheap as a copy, have
the same distribution, and need one spare copy of the inputs. The tensors' version counters do not move: what is
remembered by address and version is wrong as well.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..check.result import CheckResult
from ..measure.contender import CheckOutcome

_dice = random.SystemRandom()


@dataclass(frozen=True)
class Drawn:
    """Values of one input: ``first * (rows rotated by shift) + second * (rows rotated by other)``."""

    shift: int = 0
    other: int = 0
    first: float = 1.0
    second: float = 0.0


Draw = dict[str, Drawn]


class Inputs:
    """Tensors that kernels are given, and a private copy of their first values.

    Args:
        given: name -> tensor; all rows lie along the last dimension but one.
        rotated: names of floating-point inputs that are rotated and not mixed (whole numbers).
        mixed: names of inputs whose entries keep their sign and their rows' sums; others keep their variance.
    """

    def __init__(
        self, given: Mapping[str, Tensor], *, rotated: Iterable[str] = (), mixed: Iterable[str] = ("a",)
    ) -> None:
        self.given = dict(given)
        self._rotated, self._mixed = frozenset(rotated), frozenset(mixed)
        self._first = {name: tensor.detach().clone() for name, tensor in given.items()}
        self._grid: dict[str, Tensor] = {}
        self._now: Draw = {name: Drawn() for name in given}

    def renew(self) -> Draw:
        """New values for all of them; what to `recall` them by."""
        return self.recall({name: self._draw(name) for name in self.given})

    def recall(self, drawn: Draw) -> Draw:
        """The values of an earlier `renew`."""
        self._grid = {}
        for name, values in drawn.items():
            _write(self.given[name], self._first[name], values)
        self._now = dict(drawn)
        return drawn

    def restore(self) -> None:
        """The first values."""
        self.recall({name: Drawn() for name in self.given})

    def steps(self) -> Iterator[str]:
        """Change one after the other. All values lie on a grid, so that no sum over a tensor tells that it changed."""
        self._grid = {name: _on_grid(tensor) for name, tensor in self._first.items()}
        self._now = {}
        for name in self.given:
            self._move(name, 0)
        yield "everything"
        for name, tensor in self._first.items():
            if tensor.shape[-2] > 1:
                self._move(name, 1 + _dice.randrange(tensor.shape[-2] - 1))
                yield name

    def _move(self, name: str, shift: int) -> None:
        _write(self.given[name], self._grid[name], Drawn(shift))
        self._now[name] = Drawn(shift)

    def _draw(self, name: str) -> Drawn:
        tensor = self.given[name]
        rows = max(1, tensor.shape[-2])
        shift, other = _dice.randrange(rows), _dice.randrange(rows)
        if not tensor.is_floating_point() or name in self._rotated:
            return Drawn(shift)
        if name in self._mixed:
            part = _dice.uniform(0.2, 0.8)
            return Drawn(shift, other, part, 1.0 - part)
        angle = _dice.uniform(0.2, 0.8) * math.pi / 2
        return Drawn(shift, other, math.cos(angle), math.sin(angle))

    def untouched(self) -> CheckResult:
        """A kernel must not write to what it was given."""
        changed = [name for name in self.given if not self._is_what_it_was(name)]
        return CheckResult(
            "inputs untouched",
            math.inf if changed else 0.0,
            ", ".join(changed) and f"{', '.join(changed)} changed",
        )

    def _is_what_it_was(self, name: str) -> bool:
        given = self.given[name].detach()
        wanted = torch.empty_like(given)
        _write(wanted, (self._grid or self._first)[name], self._now[name])
        if torch.equal(given, wanted) or not given.is_floating_point():
            return bool(torch.equal(given, wanted))
        # Not bit for bit: where a mixture is computed in vectors and where one by one depends on the threads.
        unit = torch.finfo(given.dtype).eps
        return bool(torch.allclose(given, wanted, rtol=2 * unit, atol=2 * unit * _size(wanted)))


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _on_grid(tensor: Tensor) -> Tensor:
    """Multiples of 1/8 of the same shape of distribution: their sums are exact, in any order."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    deviation = float(tensor.double().std()) if tensor.numel() > 1 else 1.0
    return torch.empty_like(tensor).copy_(
        (tensor.double() * (8.0 / (deviation or 1.0))).round().div(8.0).clamp(-16, 16)
    )


def _write(target: Tensor, source: Tensor, drawn: Drawn) -> None:
    """In place, through an alias with a version counter of its own."""
    into = target.data
    for shift, factor, adds in ((drawn.shift, drawn.first, False), (drawn.other, drawn.second, True)):
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


Judge = Callable[[object], Sequence[CheckOutcome]]


@dataclass
class ChangingWork:
    """The work of a contender whose inputs change before each call (`measure.contender.Work`).

    `judge_output` holds a result against the present inputs. `after` is called when they have changed, for what has to
    be prepared from them outside of the clock.
    """

    changing: Inputs
    judge_output: Judge
    after: Callable[[], object] = lambda: None
    at_rest: Callable[[], object] = lambda: None

    def renew(self, turn: object) -> object:
        """New values for all inputs."""
        drawn = self.changing.renew()
        self.after()
        return drawn

    def recall(self, drawn: object) -> None:
        """Those of an earlier call."""
        assert isinstance(drawn, dict)
        self.changing.recall(drawn)

    def restore(self) -> None:
        """Those of the checks."""
        self.changing.restore()
        self.at_rest()

    def steps(self) -> Iterator[str]:
        """One input after the other."""
        for name in self.changing.steps():
            self.after()
            yield name

    def inputs(self) -> Sequence[Tensor]:
        """All that the kernel is given."""
        return list(self.changing.given.values())

    def judge(self, output: object) -> Sequence[CheckOutcome]:
        """The inputs first: what is computed from them says nothing if they are not what they were."""
        untouched = self.changing.untouched()
        return [untouched] if not untouched.passed else [untouched, *self.judge_output(output)]


@dataclass
class SharedWork(ChangingWork):
    """Work that is dear to judge: contenders of one round get the same values, for which one reference is enough."""

    shared: dict[object, Draw] = field(default_factory=dict)

    def renew(self, turn: object) -> object:
        """New values for each round and slot, the same for all contenders."""
        if turn not in self.shared:
            if len(self.shared) > ROUNDS_REMEMBERED:
                self.shared.pop(next(iter(self.shared)))
            self.shared[turn] = self.changing.renew()
        else:
            self.changing.recall(self.shared[turn])
        self.after()
        return self.shared[turn]

    def steps(self) -> Iterator[str]:
        """None: a model has one input, and its layers see another one in each round."""
        return iter(())


ROUNDS_REMEMBERED = 8
