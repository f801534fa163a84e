"""What must stay what it is while contenders are measured: modules, classes, and which of their members."""

from __future__ import annotations

import _thread
import builtins
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import io
import json
import json.encoder
import math
import os
import pathlib
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

WATCHED = (
    *("pft_bench.harness", "pft_bench.common.entropy"),
    *("pft_bench.reference", "pft_bench.backends.base", "pft_bench.ops"),
)
"""Modules of which everything must stay what it is: functions, constants, and what their names of modules mean."""

COMPUTING = ("pft_bench.backends", "pft_bench.model")
"""Modules whose functions must stay what they are: the baseline, what is measured beside it, and references."""

CACHED: Any = type(functools.cache(lambda: None))
"""What `functools.cache` makes of a function."""

_CALLABLE = (
    *(FunctionType, type, type(len), type(torch.Tensor.add), type(torch.add)),
    *(staticmethod, classmethod, property, functools.partial, CACHED),
)

_CONSTANT = (int, float, str, tuple, frozenset, ContextVar, ModuleType)


WRITING: tuple[Any, ...] = (
    builtins,
    fcntl,
    hashlib,
    io,
    json,
    json.encoder,
    os,
    pickle,
    tempfile,
    time,
    zlib,
)
"""Modules by which results are told and kept."""

_MODULES: tuple[Any, ...] = (
    *WRITING,
    *(gc, math, np, random, signal, sys, threading, _thread),
    *(torch, torch.autograd, torch.cuda, torch.nn.functional, torch.overrides),
)

_CLASSES = (
    *(json.JSONEncoder, json.JSONDecoder, pathlib.Path),
    *(torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph),
    *(torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.PixelShuffle, torch.nn.Sequential),
    *(torch.Tensor, torch.nn.Module, np.random.Generator, random.Random, random.SystemRandom),
)


def watched() -> Iterator[tuple[str, Any]]:
    """Everything whose functions are held: modules and the classes in them."""
    for module in _MODULES:
        yield module.__name__, module
    for kind in _CLASSES:
        yield f"{kind.__module__}.{kind.__name__}", kind
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.startswith((*WATCHED, *COMPUTING)):
            yield name, module
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and kind.__module__ == name:
                    yield f"{name}.{kind.__name__}", kind


def members(name: str, owner: Any) -> dict[str, Any]:
    """Those of a module or class that must stay."""
    kinds = (*_CALLABLE, *_CONSTANT) if name.startswith(WATCHED) else _CALLABLE
    return {
        key: value
        for key, value in vars(owner).items()
        if isinstance(value, kinds) and key not in ("Storage", "__doc__")
    }


_BASE = "pft_bench.backends.base"
"""Where backends are registered; until it is imported, no backend is loaded."""


def backends() -> dict[str, Any]:
    """All backends that have been asked for; none where nobody has loaded any."""
    loaded: dict[str, Any] = {} if _BASE not in sys.modules else sys.modules[_BASE]._loaded
    return loaded


def own_backends() -> dict[str, Any]:
    """This project's, by name: module and class of each, imported if it can be."""
    base = sys.modules.get(_BASE)
    own: dict[str, Any] = {} if base is None else {name: base._BACKENDS.get(name) for name in base._OWN}
    for module, _ in filter(None, own.values()):
        with contextlib.suppress(Exception):  # a broken optional part must not stop the others
            importlib.import_module(f"pft_bench.backends.{module}")
    return own


def put_back_own(own: dict[str, Any]) -> list[str]:
    """Register them as they were again; names of those that were registered as something else."""
    if not own:
        return []
    known = sys.modules[_BASE]._BACKENDS
    found = [name for name, path in own.items() if known.get(name) is not path]
    known.update({name: own[name] for name in found})
    return found


def made_anew(name: str) -> Any:
    """A backend that was loaded a while ago, as `get` makes it."""
    del backends()[name]
    return sys.modules[_BASE].get(name)


Registry = tuple[dict[str, Any], dict[str, Any]] | None


def registry() -> Registry:
    """Which backends are registered, and which of them are loaded."""
    base = sys.modules.get(_BASE)
    return None if base is None else (dict(base._BACKENDS), dict(base._loaded))


def register_only(known: Registry) -> None:
    """Restore the registry: backends that were added go, others come back."""
    base: Any = sys.modules.get(_BASE)
    if base is None:
        return
    for table, before in zip((base._BACKENDS, base._loaded), known or ({}, {}), strict=True):
        for name in [name for name in table if name not in before]:
            if known is not None or name not in base._OWN:
                del table[name]
        table.update(before)
