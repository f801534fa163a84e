"""Functions that a contender may have replaced: which they were, what code they ran, and how they are put back."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_
from types import ModuleType
from typing import Any

import torch

from ....common.native import load_native
from .bodies import Bodies, functions_in, reached
from .tasks import adopt
from .watched import COMPUTING, backends, made_anew, members, own_backends, put_back_own, watched

_identity: Any = load_native("_identity")
_same_members, _same_types, _same_bases = _identity.same_members, _identity.same_types, _identity.same_bases
"""This module's own: nobody holds those of the compiled module."""


class Functions:
    """The functions of the harness, of torch, of Python and of the clock, as they were when this was made: which they
    are, under which names, and what code they run. Of the harness itself, its constants too.

    It looks at identities alone: an object that says it equals another one is another one. Where all are what they
    were, as around almost every sample, that is found out in C. It keeps tuples, which nobody writes to, and `parts`
    tells whether it holds others now.
    """

    __slots__ = (
        "_backends",
        "_bases",
        "_bodies",
        "_instances",
        "_kinds",
        "_known",
        "_lent",
        "_modules",
        "_own",
        "_owners",
        "_seen",
    )

    def __init__(self, beginnings: str | tuple[str, ...] = "") -> None:
        """Of owners whose names begin so; the empty string is how all do."""
        if not beginnings:
            # What the first call of some operators imports replaces functions of torch and sets variables: now, then.
            importlib.import_module("torch._dynamo")
        self._own = (
            {} if beginnings else own_backends()
        )  # imported now, so that the functions of all are held; some are loaded later
        self._known = tuple(
            _Owner(name, owner, members(name, owner))
            for name, owner in watched()
            if name.startswith(beginnings)
        )
        self._instances = tuple(  # a plug-in's own may keep what it makes at its first call
            _Owner(f"backend {name}", item, {})
            for name, item in backends().items()
            if type(item).__module__.startswith(COMPUTING)
        )
        self._owners = tuple(known.owner for known in self._known)
        everybody = [*self._owners, *(known.owner for known in self._instances)]
        self._seen: _Seen = ((0,) * len(self._owners), (), ())
        self._kinds = tuple(everybody), tuple(map(type, everybody))
        classes = tuple(owner for owner in self._owners if isinstance(owner, type))
        self._bases = classes, tuple(map(_BASES, classes))
        modules = [owner for owner in self._owners if isinstance(owner, ModuleType)]
        self._modules = tuple(module.__name__ for module in modules), tuple(modules)
        self._bodies = Bodies(
            (f"{known.name}.{key}", function)
            for known in self._known
            for key, value in known.members
            for function in functions_in(value)
        )
        self._backends = tuple(backends().items())
        self._lent: tuple[Bodies, ...] = ()

    @contextmanager
    def also(self, given: Iterable[object]) -> Iterator[None]:
        """Within it, what these callables run must stay what it is now, too."""
        before = self._lent
        named = {id(item): ("what a contender is called or judged by", item) for item in reached(given)}
        self._lent = (*before, Bodies(named.values(), every_cell=True))
        try:
            yield
        finally:
            self._lent = before

    def parts(self) -> tuple[object, ...]:
        """All that it holds: others than before are somebody's work."""
        return _PARTS(self)

    def _same_members(self) -> bool:
        """Whether all owners have the members that they had at the last look, under the same names; not of backends,
        for what those keep must not be kept alive here.
        """
        return bool(_same_members(self._owners, *self._seen))

    def _same_kinds(self) -> bool:
        """Whether what an owner inherits is what it was, and whether it is found where it was."""
        return (
            _same_types(*self._kinds)
            and _same_bases(*self._bases)
            and all(map(is_, map(sys.modules.get, self._modules[0]), self._modules[1]))
        )

    def put_back(self) -> list[str]:
        """Names of those that are others now; they are put back."""
        found = [] if self._same_kinds() else self._put_kinds_back()
        found += [f"{item.name}.{key}" for item in self._instances for key in item.put_back()]
        if not self._same_members():
            found += [f"{known.name}.{key}" for known in self._known for key in known.put_back()]
            self._seen = _seen(self._owners)
        for bodies in (self._bodies, *self._lent):
            found += bodies.put_back()
        for key, value in self._backends:
            if backends().get(key) is not value:
                found.append(f"the backend {key}")
                backends()[key] = value
        found += [f"the backend {key}" for key in put_back_own(self._own)]
        if self._own and len(backends()) != len(self._backends):
            found += self._take_in()
        return found

    def _take_in(self) -> list[str]:
        """Make new instances of this project's backends that were loaded since the last look, and hold those from now
        on: a contender that loaded one may have changed the instance. Returns the names of those that were changed.
        """
        known, found = dict(self._backends), []
        for key, value in list(backends().items()):
            if key in known or not (type(value).__module__.startswith(COMPUTING) or key in self._own):
                continue
            right = made_anew(key)
            added = vars(value).keys() - vars(right).keys()
            if type(right) is not type(value) or any(hasattr(type(right), name) for name in added):
                found.append(f"the backend {key}")
            known[key] = right
            self._instances += (_Owner(f"backend {key}", right, {}),)
        self._backends = tuple(known.items())
        owners = (*(one.owner for one in self._known), *(one.owner for one in self._instances))
        self._kinds = owners, tuple(map(type, owners))
        return found

    def _put_kinds_back(self) -> list[str]:
        found = []
        for name, module in zip(*self._modules, strict=True):
            if sys.modules.get(name) is not module:
                found.append(f"the module {name}")
                sys.modules[name] = module
        for known, kind in zip((*self._known, *self._instances), self._kinds[1], strict=True):
            if type(known.owner) is not kind:
                found.append(f"the type of {known.name}")
                (ModuleType if isinstance(known.owner, ModuleType) else object).__setattr__(
                    known.owner, "__class__", kind
                )
        for owner, bases in zip(*self._bases, strict=True):
            if owner.__bases__ is not bases:
                found.append(f"what {owner.__module__}.{owner.__qualname__} inherits")
                owner.__bases__ = bases
        return found


_Seen = tuple[tuple[int, ...], tuple[str, ...], tuple[Any, ...]]
"""How many members each owner has, and the names and values of all of them."""


def _seen(owners: tuple[Any, ...]) -> _Seen:
    scopes = tuple(map(vars, owners))
    values = chain.from_iterable(scope.values() for scope in scopes)
    return tuple(map(len, scopes)), tuple(chain.from_iterable(scopes)), tuple(values)


_BASES = attrgetter("__bases__")
_PARTS = attrgetter(*Functions.__slots__)


class _Owner:
    """A module, a class or a backend, and those of its members that must stay what they are.

    A function that is added to one of this package, or to `torch.Tensor`, may hide what is looked up elsewhere, and so
    does anything that is added to a class under a name that it inherits, or to a module under that of a built-in.
    """

    __slots__ = ("_before", "_closed", "members", "name", "owner")

    def __init__(self, name: str, owner: Any, members: dict[str, Any]) -> None:
        self.name, self.owner, self.members = name, owner, tuple(members.items())
        self._closed = owner is torch.Tensor or name.startswith(("pft_bench", "backend "))
        self._before = frozenset(vars(owner))

    def put_back(self) -> list[str]:
        """Names of the members that are others now; they are put back."""
        now = vars(self.owner)
        found = {key: value for key, value in self.members if now.get(key) is not value}
        for key, value in found.items():
            setattr(self.owner, key, value)
        hiding = [key for key in now.keys() - self._before if self._hides(key, now[key])]
        for key in hiding:
            delattr(self.owner, key)
        return [*found, *hiding]

    def _hides(self, key: str, value: object) -> bool:
        """Whether a new member may be taken for another one."""
        if isinstance(self.owner, ModuleType) and key in _BUILT_IN:
            return True
        if not callable(value) and not hasattr(type(value), "__get__"):
            return False
        owner = self.owner if isinstance(self.owner, type) else type(self.owner)
        if not isinstance(self.owner, ModuleType) and any(key in vars(kind) for kind in owner.__mro__):
            return owner is not self.owner or any(key in vars(kind) for kind in owner.__mro__[1:])
        return self._closed and callable(value) and not isinstance(value, type)


class Members:
    """The members of all owners whose names do not begin with any of `apart`, as they were when this was made. Unlike
    `Functions` it does not look at the code that they run, which takes longer.
    """

    def __init__(self, apart: tuple[str, ...]) -> None:
        self._known = [
            _Owner(name, owner, members(name, owner))
            for name, owner in watched()
            if not name.startswith(apart)
        ]

    def put_back(self) -> None:
        """Restore members that were replaced."""
        for known in self._known:
            known.put_back()


_BUILT_IN = frozenset(vars(builtins))

_functions: Functions | None = None


def held_functions() -> Functions:
    """Those of the outermost `holding_functions`, else those of now."""
    return _functions or Functions()


@contextmanager
def holding_functions(given: Iterable[object] = ()) -> Iterator[None]:
    """Within it, functions must stay what they are now, or were where it is entered already: all contenders get the
    same yardstick. So must those that are `given`, which are made for these contenders.
    """
    global _functions
    outer, _functions = _functions, held_functions()
    adopt(True)
    try:
        with _functions.also(given):
            yield
    finally:
        _functions.put_back()
        _functions = outer
        adopt(outer is not None)
