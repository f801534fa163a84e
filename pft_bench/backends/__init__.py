"""Backends: one adapter per kernel family, found by name."""

from ..reference import Layer
from .base import (
    Backend,
    BackendInfo,
    BackendUnavailable,
    backends,
    empty,
    empty_gradients,
    empty_outputs,
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
    "Layer",
    "backends",
    "empty",
    "empty_gradients",
    "empty_outputs",
    "get",
    "names",
    "poisoned",
    "register",
    "registered",
    "require",
]
