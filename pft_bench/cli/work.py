"""What a command works with is imported when it works; help, completion and usage errors need none of it.

The module of a command has its parameters and its texts at hand, and imports the rest where this says so:

    if at_work(__name__):
        import torch

        from ..harness.cases import Settings

At first that is left out, unless torch is loaded already and nothing is to be gained. When the command is invoked, its
module is carried out once more, with everything. So nothing of the rest may be used while the module is imported: in no
default value, no decorator, no constant.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from ..common.container import respect_quota

_without: set[str] = set()
"""Modules that were carried out without what they work with."""
_working = "torch" in sys.modules


def at_work(module: str) -> bool:
    """Whether the module of this name is to import what its command works with."""
    if not _working:
        _without.add(module)
    return _working


def complete(module: ModuleType) -> None:
    """Import what was left out of a module, into its own names."""
    global _working
    _working = True
    if module.__name__ in _without:
        importlib.reload(module)
        _without.remove(module.__name__)


def deferred(module: ModuleType, name: str) -> Callable[..., Any]:
    """The command of this name in a module, which is completed before the command begins."""
    function = _function(module, name)

    @wraps(getattr(module, function))
    def command(*given: Any, **named: Any) -> Any:
        complete(module)
        respect_quota()
        return getattr(module, function)(*given, **named)

    return command


def described(module: ModuleType, name: str) -> Callable[[], None]:
    """What stands for a command where only its description is shown."""

    def command() -> None:
        raise NotImplementedError(f"{name} was only described")

    command.__doc__ = getattr(module, _function(module, name)).__doc__
    return command


def _function(module: ModuleType, name: str) -> str:
    """`NAME_command` where something that the command works with has its name."""
    return f"{name}_command" if hasattr(module, f"{name}_command") else name
