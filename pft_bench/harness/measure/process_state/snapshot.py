"""A snapshot of the process: everything is read, compared later, brought back, and what had changed is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ....common.shortage import out_of_memory
from ..guards import active
from .flags import FLAGS
from .functions import held_functions
from .tasks import children, end_children, end_threads, running_threads


class ProcessChanged(Exception):
    """A contender changed the state of the process. It is restored."""


class Snapshot:
    """The state of the process when this was made."""

    def __init__(self, *, first_call: bool = False) -> None:
        self._first_call = first_call
        self._functions = held_functions()
        self._functions.put_back()
        self._flags = [flag.now() for flag in FLAGS]
        self._on = {name: active(name) for name in ("process state", "functions", "threads", "children")}
        self._threads = running_threads()
        self._children = children()

    def restore(self) -> list[str]:
        """Bring the state back; what had changed, in words."""
        names = self._functions.put_back()
        found = [f"replaced {', '.join(names)}"] if names and self._on["functions"] else []
        for flag, before in zip(FLAGS, self._flags, strict=True):
            now = flag.now()
            if now == before:
                continue
            if self._on["process state"] and not (self._first_call and flag.by_imports):
                found.append(f"changed {flag.name}: {_shown(before, now)}")
            with contextlib.suppress(Exception):  # the others are brought back all the same
                flag.write(before)
        threads, processes = end_threads(self._threads), end_children(self._children)
        if threads and self._on["threads"]:
            found.append(f"left {threads}")
        if processes and self._on["children"]:
            found.append(f"left {processes} child processes running")
        return found

    def require(self, when: str) -> None:
        """ProcessChanged if the state is another one now; it is brought back."""
        found = self.restore()
        if found:
            raise ProcessChanged(_told(when, found))


def _told(when: str, found: Sequence[str]) -> str:
    return f"{when} it {'; it '.join(found)} (restored)"


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):  # of variables or signals
        names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)
    return f"{before} -> {now}"


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
