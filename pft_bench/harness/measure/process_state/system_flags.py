"""State of Python and of the operating system that belongs to the whole process: how each piece is read, and how it is
brought back.
"""

from __future__ import annotations

import atexit
import contextlib
import copyreg
import ctypes
import functools
import gc
import importlib
import os
import resource
import signal
import sys
import threading
from typing import Any

from .. import environment

VARIABLES = (*environment.VARIABLES, "OPENBLAS_", "LD_")
"""Beginnings of the environment variables that can change a time: those that are recorded, and more."""

ALARMS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def variables() -> dict[str, str]:
    """Environment variables that can change a time."""
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}


def set_variables(state: dict[str, str]) -> None:
    """These, and no others of the kind."""
    for name in variables():
        if name not in state:
            del os.environ[name]
    os.environ.update(state)


def affinity() -> tuple[int, ...]:
    """Processors that the process may use; nothing where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def set_affinity(cores: tuple[int, ...]) -> None:
    """The same, where the system can do that."""
    if cores:
        os.sched_setaffinity(0, cores)


def policy() -> tuple[int, ...]:
    """How the system schedules this process, and how nice it is."""
    kind = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
    return kind, os.getpriority(os.PRIO_PROCESS, 0)


_LIMITS = {name: number for name, number in vars(resource).items() if name.startswith("RLIMIT_")}


def limits() -> dict[str, tuple[int, int]]:
    """Soft and hard limits of the process, such as that of memory."""
    return {name: resource.getrlimit(number) for name, number in _LIMITS.items()}


def set_limits(state: dict[str, tuple[int, int]]) -> None:
    """Restore limits that differ; a hard limit that was lowered cannot be raised again."""
    for name, pair in state.items():
        if resource.getrlimit(_LIMITS[name]) != pair:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(_LIMITS[name], pair)


class Streams(tuple[Any, ...]):
    """Where Python writes what is printed."""

    __slots__ = ()


def streams() -> Streams:
    """Standard output and error."""
    return Streams((sys.stdout, sys.stderr))


def set_streams(state: Streams) -> None:
    """Restore both."""
    sys.stdout, sys.stderr = state


_SIGNALS = {
    number.name if isinstance(number, signal.Signals) else f"signal {number}": number
    for number in sorted(signal.valid_signals())
}
_c_signal: Any = importlib.import_module("_signal")
"""Below `signal`, which is slower and asks a handler for its `repr`."""


def handlers() -> dict[str, Any]:
    """Of all signals, real-time ones too, by name; in a few microseconds."""
    return dict(zip(_SIGNALS, map(_c_signal.getsignal, _SIGNALS.values()), strict=True))


def set_handlers(state: dict[str, Any]) -> None:
    """Those that are others now."""
    for name, handler in state.items():
        if handler is not None and _c_signal.getsignal(_SIGNALS[name]) is not handler:
            _c_signal.signal(_SIGNALS[name], handler)


def alarms() -> tuple[bool, ...]:
    """Which of them are set."""
    return tuple(signal.getitimer(kind)[0] > 0 for kind in ALARMS)


def stop_alarms(state: tuple[bool, ...]) -> None:
    """Those that were not set."""
    for kind, running in zip(ALARMS, state, strict=True):
        if not running:
            signal.setitimer(kind, 0)


def collector() -> tuple[Any, ...]:
    """The collector of garbage."""
    return gc.isenabled(), gc.get_threshold(), tuple(gc.callbacks), gc.get_debug()


def set_collector(state: tuple[Any, ...]) -> None:
    """All of it."""
    enabled, threshold, callbacks, debug = state
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.callbacks[:] = callbacks
    gc.set_debug(debug)


def trace_functions() -> tuple[Any, ...]:
    """What runs at each call or line of Python, in this thread and in new ones."""
    return sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()


def set_trace_functions(state: tuple[Any, ...]) -> None:
    """All of them."""
    for write, value in zip(
        (sys.settrace, sys.setprofile, threading.settrace, threading.setprofile), state, strict=True
    ):
        write(value)


def audited() -> bool | None:
    """Whether an audit hook listens: then `sys.audit` looks at its arguments. None where this Python always does."""
    try:
        sys.audit(0)  # type: ignore[arg-type]
    except TypeError:
        return True
    return False


def monitors() -> tuple[str | None, ...]:
    """Tools that Python tells of what runs, where it has `sys.monitoring`."""
    tools = getattr(sys, "monitoring", None)
    return () if tools is None else tuple(map(tools.get_tool, range(6)))


def set_monitors(state: tuple[str | None, ...]) -> None:
    """Take away those that have come."""
    for tool, (before, now) in enumerate(zip(state, monitors(), strict=True)):
        if before is None and now is not None:
            sys.monitoring.set_events(tool, 0)  # type: ignore[attr-defined, unused-ignore]
            sys.monitoring.free_tool_id(tool)  # type: ignore[attr-defined, unused-ignore]


def reducers() -> dict[Any, Any]:
    """What pickling calls, by the types that it is asked to write."""
    return dict(copyreg.dispatch_table)


def drop_reducers(state: dict[Any, Any]) -> None:
    """Those that were there, and no others."""
    copyreg.dispatch_table.update(state)
    for kind in [kind for kind in copyreg.dispatch_table if kind not in state]:
        del copyreg.dispatch_table[kind]


def exit_functions() -> int:
    """Functions that run when the process ends; a worker ends without them, so they are not taken back."""
    return int(atexit._ncallbacks())


def rounding() -> int:
    """How the processor rounds."""
    return int(library().fegetround())


def set_rounding(mode: int) -> None:
    """How the processor rounds."""
    library().fesetround(mode)


@functools.cache
def library() -> Any:
    """The C library."""
    return ctypes.CDLL(None)
