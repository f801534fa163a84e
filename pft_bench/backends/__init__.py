"""Backends: one adapter per kernel family, found by name."""

from .base import (
    Backend,
    BackendInfo,
    BackendUnavailable,
    backends,
    empty,
    get,
    names,
    poisoned,
    register,
    registered,
    require,
)

__all__ = [
    "Backend",
    "BackendInfo",
    "BackendUnavailable",
    "backends",
    "empty",
    "get",
    "names",
    "poisoned",
    "register",
    "registered",
    "require",
]
