"""The state that all contenders share, the process: read before a contender runs, compared and restored after it.

A kernel that leaves torch on one thread slows its rivals down; one that replaces the clock measures itself. Neither
gets a time, and who comes next finds the process as it was.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import psutil
import torch

from .guards import active

VARIABLES = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "PFT_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "TRITON_",
    "LD_",
)
"""Beginnings of the environment variables that can change a time."""

WATCHED = ("pft_bench.harness", "pft_bench.reference", "pft_bench.backends.base", "pft_bench.ops")
"""Modules whose functions must stay what they are, those of torch and `time` besides."""

GRACE_S = 0.2
"""How long a thread may take to end after a call; it is a fault all the same."""

_CALLABLE = (
    FunctionType,
    type,
    type(len),
    type(torch.Tensor.add),
    type(torch.add),
    staticmethod,
    classmethod,
    property,
)


class ProcessChanged(Exception):
    """A contender changed the state of the process. It is restored."""


@dataclass(frozen=True)
class _Flag:
    """One piece of state: how to read it and how to bring it back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _mkldnn() -> tuple[Any, ...]:
    mkldnn = torch.backends.mkldnn
    return mkldnn.enabled, getattr(mkldnn, "deterministic", None), getattr(mkldnn, "allow_tf32", None)


def _set_mkldnn(state: tuple[Any, ...]) -> None:
    torch.backends.mkldnn.enabled = state[0]
    for name, value in zip(("deterministic", "allow_tf32"), state[1:], strict=True):
        if value is not None:
            setattr(torch.backends.mkldnn, name, value)


def _cuda_flags() -> tuple[Any, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32


def _set_cuda_flags(state: tuple[Any, ...]) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = state


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _flushes_denormals() -> bool:
    return float(torch.tensor([1e-310], dtype=torch.float64).mul(1.0)) == 0.0


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}


def _set_variables(state: dict[str, str]) -> None:
    for name in _variables():
        if name not in state:
            del os.environ[name]
    os.environ.update(state)


def _affinity() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _collects(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


def _device_name() -> str:
    return str(torch.get_default_device())


def _set_grad(enabled: bool) -> None:
    torch._C._set_grad_enabled(enabled)


def _autocasts() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _set_autocasts(state: tuple[bool, ...]) -> None:
    for kind, enabled in zip(("cpu", "cuda"), state, strict=True):
        torch.set_autocast_enabled(kind, enabled)


def _set_device(name: str) -> None:
    torch.set_default_device(None if name == "cpu" else name)


FLAGS = (
    _Flag("torch threads", torch.get_num_threads, torch.set_num_threads),
    _Flag("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Flag("default device", _device_name, _set_device),
    _Flag("grad mode", torch.is_grad_enabled, _set_grad),
    _Flag("autocast", _autocasts, _set_autocasts),
    _Flag("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Flag(
        "deterministic algorithms",
        _deterministic,
        lambda s: torch.use_deterministic_algorithms(s[0], warn_only=s[1]),
    ),
    _Flag("mkldnn flags", _mkldnn, _set_mkldnn),
    _Flag("CUDA flags", _cuda_flags, _set_cuda_flags),
    _Flag("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Flag("flushing of denormals", _flushes_denormals, torch.set_flush_denormal),
    _Flag("environment variables", _variables, _set_variables),
    _Flag("processor affinity", _affinity, lambda cores: os.sched_setaffinity(0, cores) if cores else None),
    _Flag("garbage collection", gc.isenabled, _collects),
    _Flag("trace function", sys.gettrace, sys.settrace),
    _Flag("profile function", sys.getprofile, sys.setprofile),
    _Flag("switch interval", sys.getswitchinterval, sys.setswitchinterval),
)


def _watched() -> Iterator[tuple[str, Any]]:
    """Everything whose functions are held: modules and the classes in them."""
    for name, module in [
        ("time", time),
        ("torch", torch),
        ("torch.cuda", torch.cuda),
        ("torch.Tensor", torch.Tensor),
    ]:
        yield name, module
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.startswith(WATCHED):
            yield name, module
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and kind.__module__ == name:
                    yield f"{name}.{kind.__name__}", kind


class Functions:
    """The functions of the harness, of torch and of the clock, as they were when this was made."""

    def __init__(self) -> None:
        self._known = [
            (
                name,
                owner,
                [
                    (key, value)
                    for key, value in vars(owner).items()
                    if isinstance(value, _CALLABLE) and key != "Storage"
                ],
            )
            for name, owner in _watched()
        ]
        self._of_tensor = set(vars(torch.Tensor))

    def put_back(self) -> list[str]:
        """Names of those that are others now; they are put back."""
        found = []
        for name, owner, before in self._known:
            now = vars(owner)
            for key, value in before:
                if now.get(key) is not value:
                    found.append(f"{name}.{key}")
                    setattr(owner, key, value)
        for key in set(vars(torch.Tensor)) - self._of_tensor:  # what is added there hides what it inherits
            found.append(f"torch.Tensor.{key}")
            delattr(torch.Tensor, key)
        return found


_functions: Functions | None = None


@contextmanager
def holding_functions() -> Iterator[None]:
    """Within it, functions must stay what they are now: all contenders get the same yardstick."""
    global _functions
    outer, _functions = _functions, Functions()
    try:
        yield
    finally:
        _functions.put_back()
        _functions = outer


def _children() -> set[int]:
    """Process ids of the children, where the system tells them quickly."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, task.read_text().split()))
        except OSError:  # a thread that has ended
            continue
    return found


class Snapshot:
    """The state of the process when this was made."""

    def __init__(self) -> None:
        self._flags = [flag.read() for flag in FLAGS]
        self._threads = set(threading.enumerate())
        self._children = _children()
        self._functions = _functions or Functions()
        self._functions.put_back()

    def restore(self) -> list[str]:
        """Bring the state back; what had changed, in words."""
        names = self._functions.put_back()
        found = [f"replaced {', '.join(names)}"] if names and active("functions") else []
        for flag, before in zip(FLAGS, self._flags, strict=True):
            now = flag.read()
            if now != before and active("process state"):
                found.append(f"changed {flag.name}: {_shown(before, now)}")
            if now != before:
                flag.write(before)
        return found + self._end_threads() + self._end_children()

    def _end_threads(self) -> list[str]:
        left = [
            thread for thread in threading.enumerate() if thread not in self._threads and thread.is_alive()
        ]
        for thread in left:
            _end(thread)
        names = ", ".join(thread.name for thread in left[:3])
        return [f"left {len(left)} threads running ({names})"] if left and active("threads") else []

    def _end_children(self) -> list[str]:
        left = _children() - self._children
        for pid in left:
            try:
                psutil.Process(pid).kill()
            except psutil.Error:
                continue
        return [f"left {len(left)} child processes running"] if left and active("children") else []


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)
    return f"{before} -> {now}"


def _end(thread: threading.Thread) -> None:
    """Wait a moment for it; then have it raise SystemExit at its next step of Python."""
    thread.join(GRACE_S)
    if thread.is_alive() and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        thread.join(5 * GRACE_S)


@contextmanager
def unchanged(when: str) -> Iterator[None]:
    """The state of the process must be the same afterwards; it is restored in any case.

    Raises:
        ProcessChanged: something had changed; the message says what, and `when`.
    """
    before = Snapshot()
    try:
        yield
    except BaseException:
        before.restore()
        raise
    found = before.restore()
    if found:
        raise ProcessChanged(f"{when} it {'; it '.join(found)} (restored)")
