"""What must stay what it is while contenders are measured: modules, classes, and which of their members."""

from __future__ import annotations

import _thread
import builtins
import fcntl
import functools
import gc
import hashlib
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


WRITING: tuple[Any, ...] = (builtins, fcntl, hashlib, io, json, json.encoder, os, pickle, tempfile, time, zlib)
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


def backends() -> dict[str, Any]:
    """All backends that have been asked for; none where nobody has loaded any."""
    module = sys.modules.get("pft_bench.backends.base")
    loaded: dict[str, Any] = {} if module is None else module._loaded
    return loaded
