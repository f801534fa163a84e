"""All flags of the process in one list, and those of them that are read between two calls."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from . import files, system_flags, torch_flags
from .watched import WATCHED


class Flag(NamedTuple):
    """One piece of state: how to read it and how to bring it back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    by_imports: bool = False
    """Whether what a first call imports may change it."""

    def now(self) -> Any:
        """Its value; where settings contradict each other so that torch cannot tell, that."""
        try:
            return self.read()
        except Exception as error:
            return f"unreadable ({type(error).__name__})"


def listeners() -> tuple[Any, ...]:
    """Who could run between two calls, when inputs have changed and no clock runs; cheap enough to be asked there."""
    return (
        *map(id, system_flags.trace_functions()),  # an object may say that it equals None
        *system_flags.monitors(),
        *torch_flags.modes(),
        system_flags.alarms(),
        system_flags.audited(),
        torch_flags.overridden_count(),
        gc.isenabled(),
        len(gc.callbacks),
    )


def signal_handlers() -> tuple[int, ...]:
    """Which objects handle signals; asked for once a call, for there are many."""
    return (*map(id, system_flags.handlers().values()),)


_PLAIN = (bool, int, float, str, bytes, frozenset, torch.dtype, torch.device)


def same_state(now: Any, before: Any) -> bool:
    """Whether a flag has the value that it had. Values of plain types are compared with `==`, others by identity: a
    foreign class may define an `__eq__` that always says yes.
    """
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(same_state(now[key], before[key]) for key in before)
    if isinstance(now, tuple | list):
        return len(now) == len(before) and all(map(same_state, now, before))
    return type(now) in _PLAIN and bool(now == before)


@functools.cache
def _all_switches() -> tuple[ContextVar[Any], ...]:
    """What switches a guard, a check or poison off, wherever the harness keeps it: all that have a default."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(WATCHED)]
    every = {item for module in modules for item in vars(module).values() if isinstance(item, ContextVar)}
    return tuple(item for item in every if _has_default(item))


def _has_default(variable: ContextVar[Any]) -> bool:
    """Asked with a default of the question's own, a variable would not tell its own."""
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


def _stays(state: object) -> None:
    """What cannot be brought back is only named."""


FLAGS = (
    Flag("switches of the harness's own checks", _switches, _set_switches),
    Flag("torch threads", torch.get_num_threads, torch.set_num_threads),
    Flag("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Flag("default device", torch.get_default_device, torch_flags.set_default_device),
    Flag("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Flag("autocast", torch_flags.autocasts, torch_flags.set_autocasts),
    Flag("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Flag("deterministic algorithms", torch_flags.deterministic, torch_flags.set_deterministic),
    Flag("matmul precision", torch_flags.precisions, torch_flags.set_precisions),
    Flag("mkldnn flags", torch_flags.mkldnn, torch_flags.set_mkldnn),
    Flag("CUDA flags", torch_flags.cuda, torch_flags.set_cuda),
    Flag("flushing of denormals", torch_flags.flushes_denormals, torch.set_flush_denormal),
    Flag("environment variables", system_flags.variables, system_flags.set_variables),
    Flag("processor affinity", system_flags.affinity, system_flags.set_affinity),
    Flag("garbage collection", system_flags.collector, system_flags.set_collector),
    Flag("trace or profile function", system_flags.trace_functions, system_flags.set_trace_functions),
    Flag("tools that monitor Python", system_flags.monitors, system_flags.set_monitors),
    Flag("modes of torch", torch_flags.modes, torch_flags.set_modes),
    Flag("implementations of torch's operators", torch_flags.overridden, torch_flags.drop_overrides),
    Flag("hooks on what is saved for gradients", torch_flags.saving_hooks, torch_flags.drop_saving_hooks),
    Flag("how objects are pickled", system_flags.reducers, system_flags.drop_reducers, by_imports=True),
    Flag("rounding mode", system_flags.rounding, system_flags.set_rounding),
    Flag("signal handlers", system_flags.handlers, system_flags.set_handlers),
    Flag("alarms", system_flags.alarms, system_flags.stop_alarms),
    Flag("audit hooks, which cannot be taken away", system_flags.audited, _stays),
    Flag("functions at exit", system_flags.exit_functions, _stays, by_imports=True),
    Flag("scheduling policy and priority", system_flags.policy, _stays),
    Flag("inference mode", torch.is_inference_mode_enabled, torch_flags.set_inference),
    Flag("hooks on all modules of torch", torch_flags.hooks, torch_flags.drop_hooks),
    Flag("working folder", os.getcwd, os.chdir),
    Flag("the run folder", files.watched_files, _stays),
    Flag("standard output or error", system_flags.streams, system_flags.set_streams),
    Flag("limits of the process", system_flags.limits, system_flags.set_limits),
    Flag("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Flag("switch interval", sys.getswitchinterval, sys.setswitchinterval),
)
