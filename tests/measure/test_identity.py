"""The compiled comparison of what modules, classes and functions are made of."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from pft_bench.common.native import load_native

identity: Any = load_native("_identity")


class Equal:
    """Says that it equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


@pytest.fixture
def owners() -> tuple[types.ModuleType, type]:
    module = types.ModuleType("planted")
    module.first, module.second = Equal(), 2.5

    class Planted:
        third = Equal()

        def fourth(self) -> None:
            """A member."""

    return module, Planted


def seen(owners: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    scopes = [vars(owner) for owner in owners]
    return (
        tuple(map(len, scopes)),
        tuple(name for scope in scopes for name in scope),
        tuple(value for scope in scopes for value in scope.values()),
    )


def _swap(module: Any) -> None:
    module.first, module.second = module.second, module.first


def _rename(module: Any) -> None:
    module.third = module.second
    del module.second


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "another that is equal": lambda module, kind: setattr(module, "first", Equal()),
    "one more": lambda module, kind: setattr(kind, "fifth", None),
    "one less": lambda module, kind: delattr(kind, "fourth"),
    "one less, one more": lambda module, kind: (delattr(kind, "fourth"), setattr(module, "third", None)),
    "two swapped": lambda module, kind: _swap(module),
    "the last by another name": lambda module, kind: _rename(module),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_members_that_are_others(owners: tuple[Any, Any], change: Callable[[Any, Any], object]) -> None:
    before = seen(owners)
    assert identity.same_members(owners, *before)
    change(*owners)
    assert not identity.same_members(owners, *before)
    assert identity.same_members(owners, *seen(owners))


def test_a_module_whose_class_answers_for_it_is_looked_into(owners: tuple[Any, Any]) -> None:
    class Lies(types.ModuleType):
        @property
        def __dict__(self) -> dict[str, Any]:
            return {}

    before = seen(owners)
    owners[0].__class__ = Lies
    assert identity.same_members(owners, *before)
    owners[0].first = None
    assert not identity.same_members(owners, *before)
    assert not identity.same_types(owners, (types.ModuleType, type))
    owners[0].__class__ = types.ModuleType
    assert identity.same_types(owners, (types.ModuleType, type))


def test_bases_that_are_others() -> None:
    class First:
        """Inherited."""

    class Second:
        """Inherited instead."""

    class Both(First):
        """Inherits."""

    before = Both.__bases__
    assert identity.same_bases((Both,), (before,))
    Both.__bases__ = (Second,)
    assert not identity.same_bases((Both,), (before,))


def made() -> Callable[..., Any]:
    inside = Equal()

    def function(first: object = Equal(), *, second: object = Equal()) -> object:
        return inside

    return function


@pytest.mark.parametrize("name", ["__code__", "__defaults__", "__kwdefaults__"])
def test_a_function_that_runs_something_else(name: str) -> None:
    function, other = made(), (lambda: made.__doc__) if name == "__code__" else made()
    if name == "__code__":
        function, other = test_bases_that_are_others, test_a_function_that_runs_something_else
    parts = tuple((getattr(function, part),) for part in ("__code__", "__defaults__", "__kwdefaults__"))
    assert identity.same_code((function,), *parts)
    right = getattr(function, name)
    setattr(function, name, getattr(other, name) if name != "__kwdefaults__" else dict(right))
    try:
        assert not identity.same_code((function,), *parts)
        setattr(function, name, right)
        assert identity.same_code((function,), *parts)
    finally:
        setattr(function, name, right)


def test_a_closure_that_holds_something_else() -> None:
    (cell,) = made().__closure__ or ()
    right, empty = cell.cell_contents, types.CellType()
    assert identity.same_contents((cell, empty), (right, empty))
    cell.cell_contents = Equal()
    assert not identity.same_contents((cell,), (right,))
    del cell.cell_contents
    assert not identity.same_contents((cell,), (right,))
    empty.cell_contents = right
    assert not identity.same_contents((empty,), (empty,))


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("same_members", ((3,), (0,), (), ()), "owners must be modules or classes, got int"),
        ("same_bases", ((1,), ((),)), "classes must be classes, got int"),
        ("same_code", ((1,), (None,), (None,), (None,)), "functions must be functions of Python, got int"),
        ("same_types", ([1], (int,)), "incompatible function arguments"),
        ("same_contents", ((1,), (None,)), "cells must be cells of closures, got int"),
    ],
)
def test_what_it_cannot_look_into_is_named(name: str, given: tuple[Any, ...], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        getattr(identity, name)(*given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("same_members", ((types,), (), (), ())),
        ("same_members", ((types,), (0,), ("a",), ())),
        ("same_members", ((), (), ("a",), (1,))),
        ("same_types", ((1,), ())),
        ("same_bases", ((int,), ())),
        ("same_code", ((made,), (made.__code__,), (), (None,))),
        ("same_contents", ((), (None,))),
    ],
)
def test_fewer_or_more_are_not_the_same(name: str, given: tuple[Any, ...]) -> None:
    assert getattr(identity, name)(*given) is False
