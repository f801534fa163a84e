"""Functions that a contender may have replaced: which they were, what code they ran, and how they are put back."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_
from types import FunctionType
from typing import Any

import torch

from .tasks import adopt
from .watched import COMPUTING, backends, members, watched


class Functions:
    """The functions of the harness, of torch, of Python and of the clock, as they were when this was made: which they
    are, and what code they run. Of the harness itself, its constants too.

    It looks at identities alone: an object that says it equals another one is another one. Where all are what they
    were, as around almost every sample, that is found out at the speed of C.
    """

    def __init__(self) -> None:
        # What the first call of some operators imports replaces functions of torch and sets variables: now, then.
        importlib.import_module("torch._dynamo")
        self._known = [_Owner(name, owner, members(name, owner)) for name, owner in watched()]
        self._instances = [  # a plug-in's own may keep what it makes at its first call
            _Owner(f"backend {name}", item, {})
            for name, item in backends().items()
            if type(item).__module__.startswith(COMPUTING)
        ]
        self._views = [vars(known.owner).values() for known in self._known]
        self._members: list[Any] = []
        self._sizes: list[int] = []
        found = {
            id(value): (f"{known.name}.{key}", value)
            for known in self._known
            for key, value in known.members.items()
            if isinstance(value, FunctionType)
        }
        self._names = [name for name, _ in found.values()]
        self._functions = [function for _, function in found.values()]
        self._bodies = [_body(function) for function in self._functions]
        self._run = [[read(function) for function in self._functions] for read in _BODY]
        cells = [cell for body in self._bodies for cell in body.cells]
        self._cells, self._in_cells = [cell for cell, _ in cells], [value for _, value in cells]
        self._inside = [
            (body.parts[2].values(), [*body.inside.values()]) for body in self._bodies if body.inside
        ]
        self._backends = dict(backends())

    def _same_code(self) -> bool:
        """Whether each function runs what it did, with the same parameters where they are not given."""
        return (
            all(
                all(map(is_, map(read, self._functions), known))
                for read, known in zip(_BODY, self._run, strict=True)
            )
            and all(_same(now, before) for now, before in self._inside)
            and all(map(is_, map(_CONTENT, self._cells), self._in_cells))
        )

    def _same_members(self) -> bool:
        """Whether all owners have the members that they had at the last look; not of backends, for what those keep
        must not be kept alive here.
        """
        return [*map(len, self._views)] == self._sizes and all(
            map(is_, chain.from_iterable(self._views), self._members)
        )

    def put_back(self) -> list[str]:
        """Names of those that are others now; they are put back."""
        found = [f"{item.name}.{key}" for item in self._instances for key in item.put_back()]
        if not self._same_members():
            found += [f"{known.name}.{key}" for known in self._known for key in known.put_back()]
            self._sizes, self._members = [*map(len, self._views)], [*chain.from_iterable(self._views)]
        if not self._same_code():
            for name, function, body in zip(self._names, self._functions, self._bodies, strict=True):
                if _body(function) != body or body.opened():
                    found.append(f"the code of {name}")
                    body.put_back(function)
        for key, value in self._backends.items():
            if backends().get(key) is not value:
                found.append(f"the backend {key}")
                backends()[key] = value
        return found


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether these are the same objects in the same order: at the speed of C, without new ones."""
    return len(now) == len(before) and all(map(is_, now, before))


class _Owner:
    """A module, a class or a backend, and those of its members that must stay what they are.

    A function that is added to one of this package, or to `torch.Tensor`, hides what is inherited or built in.
    """

    __slots__ = ("_before", "_closed", "members", "name", "owner")

    def __init__(self, name: str, owner: Any, members: dict[str, Any]) -> None:
        self.name, self.owner, self.members = name, owner, members
        self._closed = owner is torch.Tensor or name.startswith(("pft_bench", "backend "))
        self._before = set(vars(owner))

    def put_back(self) -> list[str]:
        """Names of the members that are others now; they are put back."""
        now = vars(self.owner)
        found = [key for key, value in self.members.items() if now.get(key) is not value]
        for key in found:
            setattr(self.owner, key, self.members[key])
        for key in now.keys() - self._before if self._closed else ():
            if callable(now[key]) and not isinstance(now[key], type):
                found.append(key)
                delattr(self.owner, key)
        return found


_BODY = (attrgetter("__code__"), attrgetter("__defaults__"), attrgetter("__kwdefaults__"))
_CONTENT = attrgetter("cell_contents")


@dataclass(frozen=True)
class _Body:
    """What a function runs, by identity; `inside` are the values of its keyword parameters, which can be replaced in
    the dictionary that holds them, and those that its closure holds where they are functions.
    """

    parts: tuple[Any, ...]
    inside: dict[str, Any]
    cells: tuple[tuple[Any, Any], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Body) and tuple(map(id, self.parts)) == tuple(map(id, other.parts))

    def opened(self) -> bool:
        """Whether values inside are others now."""
        return any(self.parts[2].get(key) is not value for key, value in self.inside.items()) or any(
            cell.cell_contents is not value for cell, value in self.cells
        )

    def put_back(self, function: FunctionType) -> None:
        """All of it."""
        function.__code__, function.__defaults__, function.__kwdefaults__ = self.parts
        if self.inside:
            self.parts[2].update(self.inside)
        for cell, value in self.cells:
            cell.cell_contents = value


def _body(function: FunctionType) -> _Body:
    parts = tuple(read(function) for read in _BODY)
    return _Body(parts, dict(parts[2] or {}), tuple(_cells(function)))


def _cells(function: FunctionType) -> Iterator[tuple[Any, Any]]:
    """Those cells of a closure that hold functions, as the one that a decorator wraps."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            if isinstance(cell.cell_contents, FunctionType):
                yield cell, cell.cell_contents


_functions: Functions | None = None


def held_functions() -> Functions:
    """Those of the outermost `holding_functions`, else those of now."""
    return _functions or Functions()


@contextmanager
def holding_functions() -> Iterator[None]:
    """Within it, functions must stay what they are now, or were where it is entered already: all contenders get the
    same yardstick.
    """
    global _functions
    outer, _functions = _functions, held_functions()
    adopt(True)
    try:
        yield
    finally:
        _functions.put_back()
        _functions = outer
        adopt(outer is not None)
