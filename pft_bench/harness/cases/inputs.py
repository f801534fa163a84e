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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...common import entropy
from ..check.result import CheckResult
from ..measure.process import ProcessChanged, listeners
from ..measure.results import CheckOutcome


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


class Draw(NamedTuple):
    """Values of all inputs, and the window-head (its place among the leading dimensions) that changed in all.

    Tuples, here and above and below: who gets hold of one cannot write to it.
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
        self._first = {name: _copied(tensor) for name, tensor in given.items()}
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
        """The values of an earlier `renew`, whoever has written to the tensors since."""
        self._now = Draw()
        return self._apply(draw)

    def _apply(self, draw: Draw) -> Draw:
        """What has its values already is left as it is."""
        self._grid, before = {}, self._now.values
        for name, values in draw.drawn:
            _write(self.given[name], self._first[name].tensor(), values, before.get(name))
        self._now = draw
        return draw

    def rewrite(self) -> None:
        """All values as they should be, whoever has written to them."""
        self.recall(self._now)

    def restore(self) -> None:
        """The first values."""
        self.recall(Draw(tuple((name, Drawn()) for name in self.given)))

    def steps(self) -> Iterator[str]:
        """Change one after the other. All values lie on a grid, so that no sum over a tensor tells that it changed, and
        neither do its first and last elements.
        """
        self._grid = {name: _on_grid(copy.tensor()) for name, copy in self._first.items()}
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
        _write(self.given[name], self._grid[name], drawn, None)
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
            given, first = _head(given, head), _head(first, head)
            drawn = drawn._replace(shifts=drawn.shifts[head % len(drawn.shifts) :][:1])
        wanted = torch.empty_like(given)
        _write(wanted, first, drawn, None)
        if torch.equal(given, wanted) or not given.is_floating_point():
            return bool(torch.equal(given, wanted))
        # Not bit for bit: where a mixture is computed in vectors and where one by one depends on the threads.
        unit = torch.finfo(given.dtype).eps
        return bool(torch.allclose(given, wanted, rtol=2 * unit, atol=2 * unit * _size(wanted)))


class _Copy(NamedTuple):
    """The first values of an input, with a digest of each window-head: on a CPU they are `bytes`, which do not change,
    and yet torch writes to them through a tensor that reads them.
    """

    dtype: torch.dtype
    shape: torch.Size
    raw: bytes
    there: Tensor | None
    digests: tuple[int, ...]

    def tensor(self) -> Tensor:
        """To be read."""
        if self.there is not None:
            return self.there
        return torch.frombuffer(self.raw, dtype=self.dtype).view(self.shape)

    def sound(self, head: int | None) -> bool:
        """Whether it is what it was, in one window-head or (None) in all."""
        if head is None:
            return _digests(self.tensor()) == self.digests
        return _crc32(_bytes(_head(self.tensor(), head))) == self.digests[head]


def _copied(tensor: Tensor) -> _Copy:
    raw, digests = _bytes(tensor), _digests(tensor)
    here = tensor.device.type == "cpu" and tensor.numel() > 0
    if here:
        return _Copy(tensor.dtype, tensor.shape, raw.tobytes(), None, digests)
    return _Copy(tensor.dtype, tensor.shape, b"", tensor.detach().clone(), digests)


_crc32 = zlib.crc32


def _digests(tensor: Tensor) -> tuple[int, ...]:
    """One for each window-head."""
    if not tensor.numel():
        return ()
    return tuple(map(_crc32, _bytes(tensor).reshape(math.prod(tensor.shape[:-2]), -1)))


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()


warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)


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


def _head(tensor: Tensor, head: int) -> Tensor:
    """One window-head, without a copy: `head` counts through the leading dimensions."""
    places: list[int] = []
    for size in reversed(tensor.shape[:-2]):
        head, place = divmod(head, size)
        places.insert(0, place)
    return tensor[tuple(places)]


def _write(target: Tensor, source: Tensor, drawn: Drawn, before: Drawn | None) -> None:
    """In place, through an alias with a version counter of its own; what is there already is left as it is."""
    if drawn == before:
        return
    into = target.data
    if len(drawn.shifts) == 1:
        return _rotate(into, source, drawn)
    old = () if before is None or len(before.shifts) != len(drawn.shifts) else before.shifts
    for head, shift in enumerate(drawn.shifts):
        if not old or old[head] != shift:
            _rotate(_head(into, head), _head(source, head), Drawn((shift,)))
    return None


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


DRAWS_REMEMBERED = 64
"""Draws of shared values that are kept: more than a round has slots, or calls of a tiny model in a sample."""

Judge = Callable[[object, int | None], Sequence[CheckOutcome]]
"""A result, and the window-head to look at (None: any) -> what holds of it."""


@dataclass(slots=True)
class ChangingWork:
    """The work of a contender whose inputs change before each call (`measure.contender.ContenderWork`).

    `judge_output` holds a result against the present inputs. `after` is called when they have changed, for what has to
    be prepared from them outside of the clock; those named in `late` change once more after it, so that nothing of the
    timed call can be done there. A look is `costly` that takes about as long as a call. `own` is the harness's own
    work: the baseline, and compositions of public operators.
    """

    changing: Inputs
    judge_output: Judge
    after: Callable[[], object] = lambda: None
    at_rest: Callable[[], object] = lambda: None
    late: tuple[str, ...] = ()
    own: bool = False
    costly: bool = False

    @property
    def dear(self) -> bool:
        """No: a look at a result costs little."""
        return False

    def begin(self) -> None:
        """What others have written to the inputs goes before a sample begins."""
        self.changing.rewrite()

    def renew(self, turn: object) -> object:
        """New values for all inputs."""
        drawn, before = self.changing.renew(), listeners()
        self.after()
        if listeners() != before:  # what runs there is the kernel's, and the last values are not drawn yet
            raise ProcessChanged(
                "in its forward pass, before a timed call, it changed what can run between calls: a trace or profile "
                "function, a mode of torch, an alarm, an audit hook, the collector of garbage"
            )
        return self.changing.renew_late(self.late) if self.late else drawn

    def recall(self, drawn: object) -> None:
        """Those of an earlier call."""
        assert isinstance(drawn, Draw)
        self.changing.recall(drawn)

    def restore(self) -> None:
        """Those of the checks."""
        self.changing.restore()
        self.at_rest()

    def steps(self) -> Iterator[str]:
        """One input after the other. What the harness itself composes of PyTorch remembers nothing."""
        for name in () if self.own else self.changing.steps():
            self.after()
            yield name

    def inputs(self) -> Sequence[Tensor]:
        """All that the kernel is given."""
        return list(self.changing.given.values())

    def holds(self) -> tuple[object, ...]:
        """What only the harness changes."""
        own = self.changing, self.judge_output, self.after, self.at_rest, self.late, self.costly
        return *own, *self.changing.holds()

    def put_back(self, held: tuple[Any, ...]) -> None:
        """What `holds` gave before somebody changed it; others compute on the same inputs."""
        self.changing, self.judge_output, self.after, self.at_rest, self.late, self.costly = held[:6]
        self.changing.put_back(held[6:])

    def evidence(self) -> tuple[object, ...]:
        """Nothing: references are computed from the inputs where they are needed."""
        return ()

    def returned(self, output: object, drawn: object) -> None:
        """Nobody else has computed on these values."""

    def settle(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Nobody else has computed on these values."""
        return ()

    def glance(self) -> Sequence[CheckOutcome]:
        """A part of the inputs, after a sample."""
        return [self.changing.glance()]

    def judge(self, output: object, *, whole: bool = True) -> Sequence[CheckOutcome]:
        """The inputs first: what is computed from them says nothing if they are not what they were.

        A costly look takes one window-head: that in which the index changed, any, or both where `whole`.
        """
        untouched = self.changing.untouched() if whole else self.changing.glance()
        if not untouched.passed:
            return [untouched]
        places = [self.changing.now.head]
        if self.costly:
            places = [*places, None] if whole else [places[0] if entropy.chance(0.5) else None]
        return [untouched, *(item for place in places for item in self.judge_output(output, place))]


class Answers(Protocol):
    """What the baseline has returned in the last rounds, for values that other contenders get too."""

    def add(self, output: object, drawn: object) -> None:
        """Keep a result of the baseline."""

    def against(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Hold another result against the baseline's for the same values; nothing where it has none."""

    def evidence(self) -> tuple[object, ...]:
        """All that results are held against."""


@dataclass(slots=True)
class SharedWork(ChangingWork):
    """Work that is dear to judge: contenders of one round get the same values, for which one reference is enough.

    What the baseline returned in the same round is one that costs nothing: the last call of each sample is held against
    it, as far as a look without a float64 model can tell.
    """

    shared: dict[object, Draw] = field(default_factory=dict)
    answers: Answers | None = None

    def evidence(self) -> tuple[object, ...]:
        """The references that have been computed, and the baseline's results."""
        return () if self.answers is None else self.answers.evidence()

    def returned(self, output: object, drawn: object) -> None:
        """The baseline's is kept."""
        if self.answers is not None and self.own:
            self.answers.add(output, drawn)

    def settle(self, output: object, drawn: object) -> Sequence[CheckOutcome]:
        """Against the baseline's."""
        return () if self.answers is None or self.own else self.answers.against(output, drawn)

    @property
    def dear(self) -> bool:
        """Yes: a reference is a call of the baseline."""
        return True

    def renew(self, turn: object) -> object:
        """New values for each call of each round and slot, the same for all contenders."""
        if turn not in self.shared:
            if len(self.shared) > DRAWS_REMEMBERED:
                self.shared.pop(next(iter(self.shared)))
            self.shared[turn] = self.changing.renew()
        else:
            self.changing.recall(self.shared[turn])
        self.after()
        return self.shared[turn]

    def steps(self) -> Iterator[str]:
        """None: a model has one input, and its layers see another one in each round."""
        return iter(())
