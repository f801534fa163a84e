"""What functions run: their code, the values of parameters that are not given, and what their closures hold."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, is_
from types import FunctionType, MethodType
from typing import Any

from ....common.native import load_native
from .watched import CACHED

_identity: Any = load_native("_identity")
_same_code, _same_contents = _identity.same_code, _identity.same_contents
"""This module's own: nobody holds those of the compiled module."""


class Bodies:
    """What functions run, by their names, and what objects of `functools.partial` call.

    With `every_cell`, closures must hold what they do; else the functions among it.
    """

    __slots__ = ("_bodies", "_cells", "_functions", "_inside", "_names", "_partials", "_run")

    def __init__(self, named: Iterable[tuple[str, Any]], *, every_cell: bool = False) -> None:
        found = {id(item): (name, item) for name, item in named}
        functions = [pair for pair in found.values() if isinstance(pair[1], FunctionType)]
        partials = [(name, item) for name, item in found.values() if isinstance(item, functools.partial)]
        self._partials = tuple((name, item, *_CALLED(item)) for name, item in partials)
        self._names = tuple(name for name, _ in functions)
        self._functions = tuple(function for _, function in functions)
        self._bodies = tuple(_body(function, every_cell=every_cell) for function in self._functions)
        self._run = self._functions, *zip(*(body.parts for body in self._bodies), strict=True)
        cells = [cell for body in self._bodies for cell in body.cells]
        self._cells = tuple(cell for cell, _ in cells), tuple(value for _, value in cells)
        self._inside = tuple(
            (body.parts[2].values(), (*body.inside.values(),)) for body in self._bodies if body.inside
        )

    def _same(self) -> bool:
        """Whether each function runs what it did, with the same parameters where they are not given."""
        return (
            (not self._functions or _same_code(*self._run))
            and all(_same(now, before) for now, before in self._inside)
            and bool(_same_contents(*self._cells))
        )

    def put_back(self) -> list[str]:
        """Those that run something else now; they are put back."""
        found = []
        for name, function, body in (
            () if self._same() else zip(self._names, self._functions, self._bodies, strict=True)
        ):
            if not body.runs_in(function) or body.opened():
                found.append(f"the code of {name}")
                body.put_back(function)
        for name, item, *called in self._partials:
            if not _same(_CALLED(item), called):
                found.append(name)
                item.__setstate__((*called, {}))  # type: ignore[attr-defined, unused-ignore]
        return found


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether these are the same objects in the same order: at the speed of C, without new ones."""
    return len(now) == len(before) and all(map(is_, now, before))


_BODY = (attrgetter("__code__"), attrgetter("__defaults__"), attrgetter("__kwdefaults__"))
_CALLED = attrgetter("func", "args", "keywords")


def _content(cell: Any) -> Any:
    """What a cell of a closure holds; an empty one holds itself."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


@dataclass(frozen=True)
class _Body:
    """What a function runs, by identity; `inside` are the values of its keyword parameters, which can be replaced in
    the dictionary that holds them, and those that its closure holds where they are functions.
    """

    parts: tuple[Any, ...]
    inside: dict[str, Any]
    cells: tuple[tuple[Any, Any], ...]

    def runs_in(self, function: FunctionType) -> bool:
        """Whether the function runs it."""
        return all(read(function) is part for read, part in zip(_BODY, self.parts, strict=True))

    def opened(self) -> bool:
        """Whether values inside are others now."""
        return any(self.parts[2].get(key) is not value for key, value in self.inside.items()) or any(
            _content(cell) is not value for cell, value in self.cells
        )

    def put_back(self, function: FunctionType) -> None:
        """All of it."""
        function.__code__, function.__defaults__, function.__kwdefaults__ = self.parts
        if self.inside:
            self.parts[2].update(self.inside)
        for cell, value in self.cells:
            cell.cell_contents = value


def _body(function: FunctionType, *, every_cell: bool) -> _Body:
    parts = tuple(read(function) for read in _BODY)
    cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
    held = [(cell, value) for cell, value in cells if every_cell or isinstance(value, FunctionType)]
    return _Body(parts, dict(parts[2] or {}), tuple(held))


def functions_in(value: object) -> Iterator[FunctionType]:
    """Those that run when a member of a module or of a class is called, or read."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, property):
        for read in (value.fget, value.fset, value.fdel):
            yield from functions_in(read)
    elif isinstance(value, staticmethod | classmethod):
        yield from functions_in(value.__func__)
    elif isinstance(value, CACHED):
        yield from functions_in(value.__wrapped__)


def reached(given: Iterable[object]) -> Iterator[object]:
    """Functions and partial calls among these and among what they hold."""
    seen: dict[int, object] = {}
    left = list(given)
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, FunctionType):
            left += map(_content, item.__closure__ or ())
            yield item
        elif isinstance(item, functools.partial):
            left += (item.func, *item.args, *item.keywords.values())
            yield item
        elif isinstance(item, MethodType):
            left.append(item.__func__)
