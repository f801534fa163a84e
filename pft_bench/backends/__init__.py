"""Backends: one adapter per kernel family, found by name.

The package can be called: `pft_bench.backends()` is the table of what can run here, `pft_bench.backends.register` and
everything else is what it holds.
"""

import sys
from types import ModuleType

from ..reference import Layer
from .base import (
    Backend,
    BackendInfo,
    BackendUnavailable,
    BadIndex,
    Rung,
    backends,
    can_check_index,
    checks_index,
    empty,
    empty_gradients,
    empty_outputs,
    get,
    lent,
    names,
    poisoned,
    register,
    registered,
    require,
    rungs,
    unavailable,
)

__all__ = [
    "Backend",
    "BackendInfo",
    "BackendUnavailable",
    "BadIndex",
    "Layer",
    "Rung",
    "backends",
    "can_check_index",
    "checks_index",
    "empty",
    "empty_gradients",
    "empty_outputs",
    "get",
    "lent",
    "names",
    "poisoned",
    "register",
    "registered",
    "require",
    "rungs",
    "unavailable",
]


class _Table(ModuleType):
    """This package as what users call; a function of its name in pft_bench would hide the rest of it."""

    def __call__(self) -> list[BackendInfo]:
        """Every backend: its name, whether it can run here, and why not or what it is."""
        return backends()


sys.modules[__name__].__class__ = _Table
