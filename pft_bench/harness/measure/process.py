"""The state that all contenders share, the process: read before a contender runs, compared and restored after it.

A kernel that leaves torch on one thread slows its rivals down; one that replaces the clock measures itself. Neither
gets a time, and who comes next finds the process as it was.
"""

from __future__ import annotations

import _thread
import atexit
import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _device

from ...common.shortage import out_of_memory
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

WATCHED = (
    "pft_bench.harness",
    "pft_bench.common.entropy",
    "pft_bench.reference",
    "pft_bench.backends.base",
    "pft_bench.ops",
)
"""Modules of which everything must stay what it is: functions, constants, and what their names of modules mean."""

COMPUTING = ("pft_bench.backends", "pft_bench.model")
"""Modules whose functions must stay what they are: the baseline, what is measured beside it, and references."""

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
    functools.partial,
    type(functools.cache(lambda: None)),
)

_CONSTANT = (int, float, str, tuple, frozenset, ContextVar, ModuleType)


class ProcessChanged(Exception):
    """A contender changed the state of the process. It is restored."""


class _Flag(NamedTuple):
    """One piece of state: how to read it and how to bring it back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    by_imports: bool = False
    """Whether what a first call imports may change it."""


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


_PRODUCTS = (
    ("generic", "all"),
    *((library, op) for library in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)


def _precisions() -> tuple[Any, ...]:
    """How exact float32 products are: by the older setting and, where torch has it, by library and operator."""
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    each = () if read is None else tuple(read(*part) for part in _PRODUCTS)
    return torch.get_float32_matmul_precision(), each


def _set_precisions(state: tuple[Any, ...]) -> None:
    """The older setting first: it writes to some of the others, and cannot be read where they contradict it."""
    write = getattr(torch._C, "_set_fp32_precision_setter", None)
    torch.set_float32_matmul_precision(state[0])
    for part, value in zip(_PRODUCTS, state[1], strict=False):
        if write is not None and torch._C._get_fp32_precision_getter(*part) != value:
            write(*part, value)


def _audited() -> bool | None:
    """Whether an audit hook listens: then `sys.audit` looks at its arguments. None where this Python always does."""
    try:
        sys.audit(0)  # type: ignore[arg-type]
    except TypeError:
        return True
    return False


def listeners() -> tuple[Any, ...]:
    """Who could run between two calls, when inputs have changed and no clock runs; cheap enough to be asked there."""
    return (*_trace_functions(), *_modes(), _alarms(), _audited(), gc.isenabled())


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
    """Whatever is left of other default devices goes first: torch refuses to leave one that is not where it put it."""
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    for mode in reversed(modes):
        if not isinstance(mode, _device.DeviceContext):
            torch._C._push_on_torch_function_stack(mode)
    torch._GLOBAL_DEVICE_CONTEXT.device_context = None
    _device.CURRENT_DEVICE = None
    torch.set_default_device(None if name == "cpu" else name)


def _handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}


def _set_handlers(state: dict[str, Any]) -> None:
    for name, handler in state.items():
        number = signal.Signals[name]
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _alarms() -> tuple[bool, ...]:
    return tuple(signal.getitimer(kind)[0] > 0 for kind in ALARMS)


def _set_alarms(state: tuple[bool, ...]) -> None:
    for kind, running in zip(ALARMS, state, strict=True):
        if not running:
            signal.setitimer(kind, 0)


def _collector() -> tuple[Any, ...]:
    return gc.isenabled(), gc.get_threshold(), tuple(gc.callbacks), gc.get_debug()


def _set_collector(state: tuple[Any, ...]) -> None:
    enabled, threshold, callbacks, debug = state
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.callbacks[:] = callbacks
    gc.set_debug(debug)


def _modes() -> tuple[int, int]:
    """Modes of torch that are entered: whatever they do, they see each call of an operator, the harness's too."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def _set_modes(state: tuple[int, int]) -> None:
    while torch._C._len_torch_function_stack() > state[0]:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > state[1]:
        torch._C._pop_torch_dispatch_stack(None)


def _rounding() -> int:
    return int(_libm().fegetround())


def _set_rounding(mode: int) -> None:
    _libm().fesetround(mode)


@functools.cache
def _libm() -> Any:
    return ctypes.CDLL(None)


def _trace_functions() -> tuple[Any, ...]:
    return sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()


def _set_trace_functions(state: tuple[Any, ...]) -> None:
    for write, value in zip(
        (sys.settrace, sys.setprofile, threading.settrace, threading.setprofile), state, strict=True
    ):
        write(value)


def _exit_functions() -> int:
    """Functions that run when the process ends; a worker ends without them, so they are not taken back."""
    return int(atexit._ncallbacks())


@functools.cache
def _all_switches() -> tuple[ContextVar[Any], ...]:
    """What switches a guard, a check or poison off, wherever the harness keeps it."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(WATCHED)]
    every = {item for module in modules for item in vars(module).values() if isinstance(item, ContextVar)}
    return tuple(item for item in every if _default(item))


def _default(variable: ContextVar[Any]) -> bool:
    """Whether it has a value where nobody has set one."""
    try:
        variable.get()
    except LookupError:
        return False
    return True


def _switches() -> tuple[Any, ...]:
    return tuple(switch.get() for switch in _all_switches())


def _set_switches(state: tuple[Any, ...]) -> None:
    for switch, value in zip(_all_switches(), state, strict=True):
        if switch.get() is not value:
            switch.set(value)


def _set_inference(enabled: bool) -> None:
    _inference.append(torch._C._InferenceMode(enabled))


_inference: list[Any] = []
"""A mode ends with its object."""


def _hooks() -> tuple[int, ...]:
    """Hooks on all modules: each layer of each contender's model calls them."""
    return tuple(map(len, _hook_tables()))


def _hook_tables() -> list[Any]:
    owner = torch.nn.modules.module
    return [
        value
        for name, value in vars(owner).items()
        if name.startswith("_global_") and "hook" in name and isinstance(value, dict)
    ]


def _drop_hooks(state: tuple[int, ...]) -> None:
    for table, count in zip(_hook_tables(), state, strict=True):
        for key in list(table)[count:]:
            del table[key]


def _policy() -> tuple[int, ...]:
    """How the system schedules this process, and how nice it is."""
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
    return policy, os.getpriority(os.PRIO_PROCESS, 0)


ALARMS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

FLAGS = (
    _Flag("switches of the harness's own checks", _switches, _set_switches),
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
    _Flag("matmul precision", _precisions, _set_precisions),
    _Flag("mkldnn flags", _mkldnn, _set_mkldnn),
    _Flag("CUDA flags", _cuda_flags, _set_cuda_flags),
    _Flag("flushing of denormals", _flushes_denormals, torch.set_flush_denormal),
    _Flag("environment variables", _variables, _set_variables),
    _Flag("processor affinity", _affinity, lambda cores: os.sched_setaffinity(0, cores) if cores else None),
    _Flag("garbage collection", _collector, _set_collector),
    _Flag("trace or profile function", _trace_functions, _set_trace_functions),
    _Flag("modes of torch", _modes, _set_modes),
    _Flag("rounding mode", _rounding, _set_rounding),
    _Flag("signal handlers", _handlers, _set_handlers),
    _Flag("alarms", _alarms, _set_alarms),
    _Flag("audit hooks, which cannot be taken away", _audited, lambda _: None),
    _Flag("functions at exit", _exit_functions, lambda _: None, by_imports=True),
    _Flag("scheduling policy and priority", _policy, lambda _: None),
    _Flag("inference mode", torch.is_inference_mode_enabled, _set_inference),
    _Flag("hooks on all modules of torch", _hooks, _drop_hooks),
    _Flag("working folder", os.getcwd, os.chdir),
    _Flag("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Flag("switch interval", sys.getswitchinterval, sys.setswitchinterval),
)


def _watched() -> Iterator[tuple[str, Any]]:
    """Everything whose functions are held: modules and the classes in them."""
    plain: tuple[Any, ...] = (builtins, gc, math, np, os, random, signal, threading, time)
    for module in (*plain, torch, torch.autograd, torch.cuda, torch.nn.functional, torch.overrides):
        yield module.__name__, module
    gpu = (torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph)
    layers = (
        torch.nn.Linear,
        torch.nn.Conv2d,
        torch.nn.LayerNorm,
        torch.nn.PixelShuffle,
        torch.nn.Sequential,
    )
    for kind in (
        *gpu,
        *layers,
        torch.Tensor,
        torch.nn.Module,
        np.random.Generator,
        random.Random,
        random.SystemRandom,
    ):
        yield f"{kind.__module__}.{kind.__name__}", kind
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.startswith((*WATCHED, *COMPUTING)):
            yield name, module
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and kind.__module__ == name:
                    yield f"{name}.{kind.__name__}", kind


def _backends() -> dict[str, Any]:
    """All backends that have been asked for; none where nobody has loaded any."""
    module = sys.modules.get("pft_bench.backends.base")
    loaded: dict[str, Any] = {} if module is None else module._loaded
    return loaded


class Functions:
    """The functions of the harness, of torch, of Python and of the clock, as they were when this was made: which they
    are, and what code they run. Of the harness itself, its constants too.

    It looks at identities alone: an object that says it equals another one is another one. Where all are what they
    were, as around almost every sample, that is found out at the speed of C.
    """

    def __init__(self) -> None:
        # What the first call of some operators imports replaces functions of torch and sets variables: now, then.
        importlib.import_module("torch._dynamo")
        self._known = [
            _Owner(name, owner, {key: value for key, value in vars(owner).items() if _held(name, key, value)})
            for name, owner in _watched()
        ]
        self._instances = [  # a plug-in's own may keep what it makes at its first call
            _Owner(f"backend {name}", item, {})
            for name, item in _backends().items()
            if type(item).__module__.startswith(COMPUTING)
        ]
        self._views = [vars(known.owner).values() for known in self._known]
        self._members: list[Any] = []
        self._sizes: list[int] = []
        found = {
            id(value): (f"{known.name}.{key}", value)
            for known in self._known
            for key, value in known.members.items()
            if isinstance(value, FunctionType)
        }
        self._names = [name for name, _ in found.values()]
        self._functions = [function for _, function in found.values()]
        self._bodies = [_body(function) for function in self._functions]
        self._run = [[read(function) for function in self._functions] for read in _BODY]
        cells = [cell for body in self._bodies for cell in body.cells]
        self._cells, self._in_cells = [cell for cell, _ in cells], [value for _, value in cells]
        self._inside = [
            (body.parts[2].values(), [*body.inside.values()]) for body in self._bodies if body.inside
        ]
        self._backends = dict(_backends())

    def _same_code(self) -> bool:
        """Whether each function runs what it did, with the same parameters where they are not given."""
        return (
            all(
                all(map(is_, map(read, self._functions), known))
                for read, known in zip(_BODY, self._run, strict=True)
            )
            and all(_same(now, before) for now, before in self._inside)
            and all(map(is_, map(_CONTENT, self._cells), self._in_cells))
        )

    def _same_members(self) -> bool:
        """Whether all owners have the members that they had at the last look; not of backends, for what those keep
        must not be kept alive here.
        """
        return [*map(len, self._views)] == self._sizes and all(
            map(is_, chain.from_iterable(self._views), self._members)
        )

    def put_back(self) -> list[str]:
        """Names of those that are others now; they are put back."""
        found = [f"{item.name}.{key}" for item in self._instances for key in item.put_back()]
        if not self._same_members():
            found += [f"{known.name}.{key}" for known in self._known for key in known.put_back()]
            self._sizes, self._members = [*map(len, self._views)], [*chain.from_iterable(self._views)]
        if not self._same_code():
            for name, function, body in zip(self._names, self._functions, self._bodies, strict=True):
                if _body(function) != body or body.opened():
                    found.append(f"the code of {name}")
                    body.put_back(function)
        for key, value in self._backends.items():
            if _backends().get(key) is not value:
                found.append(f"the backend {key}")
                _backends()[key] = value
        return found


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether these are the same objects in the same order: at the speed of C, without new ones."""
    return len(now) == len(before) and all(map(is_, now, before))


class _Owner:
    """A module, a class or a backend, and those of its members that must stay what they are.

    A function that is added to one of this package, or to `torch.Tensor`, hides what is inherited or built in.
    """

    __slots__ = ("_before", "_closed", "members", "name", "owner")

    def __init__(self, name: str, owner: Any, members: dict[str, Any]) -> None:
        self.name, self.owner, self.members = name, owner, members
        self._closed = owner is torch.Tensor or name.startswith(("pft_bench", "backend "))
        self._before = set(vars(owner))

    def put_back(self) -> list[str]:
        """Names of the members that are others now; they are put back."""
        now = vars(self.owner)
        found = [key for key, value in self.members.items() if now.get(key) is not value]
        for key in found:
            setattr(self.owner, key, self.members[key])
        for key in now.keys() - self._before if self._closed else ():
            if callable(now[key]) and not isinstance(now[key], type):
                found.append(key)
                delattr(self.owner, key)
        return found


_BODY = (attrgetter("__code__"), attrgetter("__defaults__"), attrgetter("__kwdefaults__"))
_CONTENT = attrgetter("cell_contents")


@dataclass(frozen=True)
class _Body:
    """What a function runs, by identity; `inside` are the values of its keyword parameters, which can be replaced in
    the dictionary that holds them, and those that its closure holds where they are functions.
    """

    parts: tuple[Any, ...]
    inside: dict[str, Any]
    cells: tuple[tuple[Any, Any], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Body) and tuple(map(id, self.parts)) == tuple(map(id, other.parts))

    def opened(self) -> bool:
        """Whether values inside are others now."""
        return any(self.parts[2].get(key) is not value for key, value in self.inside.items()) or any(
            cell.cell_contents is not value for cell, value in self.cells
        )

    def put_back(self, function: FunctionType) -> None:
        """All of it."""
        function.__code__, function.__defaults__, function.__kwdefaults__ = self.parts
        if self.inside:
            self.parts[2].update(self.inside)
        for cell, value in self.cells:
            cell.cell_contents = value


def _held(owner: str, key: str, value: object) -> bool:
    kinds = (*_CALLABLE, *_CONSTANT) if owner.startswith(WATCHED) else _CALLABLE
    return isinstance(value, kinds) and key not in ("Storage", "__doc__")


def _body(function: FunctionType) -> _Body:
    parts = tuple(read(function) for read in _BODY)
    return _Body(parts, dict(parts[2] or {}), tuple(_cells(function)))


def _cells(function: FunctionType) -> Iterator[tuple[Any, Any]]:
    """Those cells of a closure that hold functions, as the one that a decorator wraps."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            if isinstance(cell.cell_contents, FunctionType):
                yield cell, cell.cell_contents


_functions: Functions | None = None


@contextmanager
def holding_functions() -> Iterator[None]:
    """Within it, functions must stay what they are now, or were where it is entered already: all contenders get the
    same yardstick.
    """
    global _functions
    outer, _functions = _functions, _functions or Functions()
    _adopt(True)
    try:
        yield
    finally:
        _functions.put_back()
        _functions = outer
        _adopt(outer is not None)


PR_SET_CHILD_SUBREAPER = 36


def _adopt(orphans: bool) -> None:
    """Whether processes whose parent has ended become children of this one, where the system can do that: a process
    that was forked twice is then no stranger.
    """
    with contextlib.suppress(AttributeError, OSError):
        _libm().prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def _children() -> set[int]:
    """Process ids of the children, where the system tells them quickly."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, task.read_text().split()))
        except OSError:  # a thread that has ended
            continue
    return found


def running_threads() -> tuple[frozenset[int], int]:
    """All threads that run Python, and how many were started from Python: some run a function of C alone.

    The module `threading` knows neither those nor what was started below it.
    """
    return frozenset(sys._current_frames()), _thread._count()


def started(before: tuple[frozenset[int], int], now: tuple[frozenset[int], int]) -> bool:
    """Whether threads run that did not: one that has ended meanwhile is nobody's fault."""
    return bool(now[0] - before[0]) or now[1] > before[1]


class Snapshot:
    """The state of the process when this was made."""

    def __init__(self, *, first_call: bool = False) -> None:
        self._first_call = first_call
        self._functions = _functions or Functions()
        self._functions.put_back()
        self._flags = [_read(flag) for flag in FLAGS]
        self._on = {name: active(name) for name in ("process state", "functions", "threads", "children")}
        self._threads, self._count = running_threads()
        self._children = _children()

    def restore(self) -> list[str]:
        """Bring the state back; what had changed, in words."""
        names = self._functions.put_back()
        found = [f"replaced {', '.join(names)}"] if names and self._on["functions"] else []
        for flag, before in zip(FLAGS, self._flags, strict=True):
            now = _read(flag)
            told = self._on["process state"] and not (self._first_call and flag.by_imports)
            if now != before and told:
                found.append(f"changed {flag.name}: {_shown(before, now)}")
            if now != before:
                with contextlib.suppress(Exception):  # the others are brought back all the same
                    flag.write(before)
        return found + self._end_threads() + self._end_children()

    def require(self, when: str) -> None:
        """ProcessChanged if the state is another one now; it is brought back."""
        found = self.restore()
        if found:
            raise ProcessChanged(_told(when, found))

    def _end_threads(self) -> list[str]:
        now, count = running_threads()
        left, more = now - self._threads, count - self._count
        if not started((self._threads, self._count), (now, count)):
            return []
        known = {thread.ident: thread.name for thread in threading.enumerate()}
        names = ", ".join(known.get(ident, "unnamed") for ident in sorted(left)[:3])
        _end(left, self._count)
        told = f"left {max(len(left), more)} threads running ({names or 'unnamed'})"
        return [told] if self._on["threads"] else []

    def _end_children(self) -> list[str]:
        left = _children() - self._children
        for pid in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return [f"left {len(left)} child processes running"] if left and self._on["children"] else []


def _told(when: str, found: Sequence[str]) -> str:
    return f"{when} it {'; it '.join(found)} (restored)"


def _read(flag: _Flag) -> Any:
    """Its value; where settings contradict each other so that torch cannot tell, that."""
    try:
        return flag.read()
    except Exception as error:
        return f"unreadable ({type(error).__name__})"


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):  # of variables or signals
        names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)
    return f"{before} -> {now}"


def _end(idents: frozenset[int], count: int) -> None:
    """Wait a moment for these threads, and until no more than `count` run; then have them raise SystemExit at the
    next step of Python.
    """
    _wait_for(idents, count, GRACE_S)
    for ident in idents & running_threads()[0]:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
    _wait_for(idents, count, 5 * GRACE_S)


def _wait_for(idents: frozenset[int], count: int, most_s: float) -> None:
    """Until the threads have ended, at most so long."""
    until = _monotonic() + most_s
    while _monotonic() < until:
        now, running = running_threads()
        if not idents & now and running <= count:
            return
        _sleep(0.002)


_monotonic, _sleep = time.monotonic, time.sleep
"""This module's own: a thread that is left may have replaced the names."""


@contextmanager
def unchanged(when: str, *, first_call: bool = False) -> Iterator[Snapshot]:
    """The state of the process must be the same afterwards; it is restored in any case.

    A `first_call` may import what registers functions to run at exit.

    Yields:
        The state before: who `require`s it in between sees what would be undone by the end.

    Raises:
        ProcessChanged: something had changed; the message says what, and `when`. An exception that this brought about,
            or came with it, is told after it.
    """
    before = Snapshot(first_call=first_call)
    try:
        yield before
    except Exception as error:
        found = before.restore()
        if found and not (isinstance(error, ProcessChanged) or out_of_memory(error)):
            raise ProcessChanged(f"{_told(when, found)}; {type(error).__name__}: {error}") from error
        raise
    except BaseException:
        before.restore()
        raise
    before.require(when)
