"""The guards over a measurement; each can be switched off to show what it is there for (`pft-bench selftest`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

GUARDS = {
    "fresh inputs": "inputs change before each timed call, and one by one before the first",
    "results judged": "results of timed calls are held against float64",
    "result kind": "a result is a torch.Tensor and nothing that is derived from it",
    "result memory": "a result has memory of its own",
    "result stays": "a result does not change after the call",
    "harness state": "the harness's own objects are the same before and after a call",
    "clocks agree": "a clock besides the timer's agrees about what the calls took",
    "judge tried": "a result that was spoiled on purpose is found wrong",
    "process state": "flags, variables and processors of the process are restored and compared",
    "functions": "functions of the harness, of torch and of the clock are put back",
    "threads": "no Python thread outlives a call",
    "children": "no process outlives a call",
}
"""Name -> what it holds."""

_off: ContextVar[frozenset[str]] = ContextVar("guards switched off", default=frozenset())


def active(name: str) -> bool:
    """Whether a guard is on."""
    return name not in _off.get()


@contextmanager
def without_guards(*names: str) -> Iterator[None]:
    """Switch guards off: to show that nothing else sees what they see, only."""
    token = _off.set(_off.get() | set(names))
    try:
        yield
    finally:
        _off.reset(token)
