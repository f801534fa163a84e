"""A snapshot of the process: everything is read, compared later, brought back, and what had changed is named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from ....common.shortage import out_of_memory
from ..guards import active
from . import system_flags, torch_flags
from .files import Marks
from .flags import FLAGS, Flag, same_state
from .functions import Functions, Members, held_functions
from .tasks import Threads, adopt, children, end_children, end_if_forked, end_threads, running_threads
from .watched import WRITING, register_only, registry


class ProcessChanged(Exception):
    """A contender changed the state of the process. It is restored."""


class Snapshot:
    """The state of the process when this was made."""

    __slots__ = ("_children", "_first_call", "_flags", "_functions", "_on", "_process", "_threads")

    def __init__(self, *, first_call: bool = False) -> None:
        self._first_call, self._process = first_call, os.getpid()
        self._functions = held_functions()
        self._functions.put_back()
        self._flags = tuple(flag.now() for flag in FLAGS)
        self._on = frozenset(filter(active, ("process state", "functions", "threads", "children")))
        self._threads = running_threads()
        self._children = children()

    def parts(self) -> tuple[object, ...]:
        """All that it holds, and what functions were: others than before are somebody's work."""
        return *_KEPT(self), *self._functions.parts()

    def restore(self) -> list[str]:
        """Bring the state back; what had changed, in words. A process that the contender forked ends here."""
        end_if_forked(self._process)
        names = self._functions.put_back()
        found = [f"replaced {', '.join(names)}"] if names and "functions" in self._on else []
        for flag, before in zip(FLAGS, self._flags, strict=True):
            changed = _bring_back(flag, before)
            if changed and flag.read is torch_flags.overridden and (kept := flag.now() - before):
                _kept.update(kept)
                changed += f", of which torch keeps {', '.join(sorted(kept))}"
            if changed and "process state" in self._on and not (self._first_call and flag.by_imports):
                found.append(changed)
        threads, processes = end_threads(self._threads), end_children(self._children)
        if threads and "threads" in self._on:
            found.append(f"left {threads}")
        if processes and "children" in self._on:
            found.append(f"left {processes} child processes running")
        return found

    @property
    def threads(self) -> Threads:
        """The threads that ran when this was made."""
        return self._threads

    def require(self, when: str) -> None:
        """ProcessChanged if the state is another one now; it is brought back."""
        found = self.restore()
        if found:
            raise ProcessChanged(_told(when, found))


_kept: set[str] = set()
"""Operators that a contender replaced and that could not be restored: they spoil all later results of the process."""


def require_operators() -> None:
    """ProcessChanged if an operator of torch is still replaced: no result in this process counts then."""
    if left := _kept & torch_flags.overridden():
        raise ProcessChanged(
            f"another contender of this process has registered {', '.join(sorted(left))} anew, and torch keeps it: "
            "nothing that is computed here counts"
        )


_KEPT = attrgetter(*Snapshot.__slots__)


def _told(when: str, found: Sequence[str]) -> str:
    return f"{when} it {'; it '.join(found)} (restored)"


def _bring_back(flag: Flag, before: Any) -> str:
    """Give a flag the value that it had; what had changed, in words, empty where nothing had."""
    now = flag.now()
    if same_state(now, before):
        return ""
    with contextlib.suppress(Exception):  # the others are brought back all the same
        flag.write(before)
    try:  # only now: the `repr` of a contender's object may run anything, and raise
        words = _shown(before, now)
    except Exception as error:
        words = f"the new value cannot be shown ({type(error).__name__})"
    return f"changed {flag.name}: {words}"


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, frozenset) and isinstance(now, frozenset):
        return ", ".join(sorted(before ^ now))
    if isinstance(before, dict) and isinstance(now, dict):  # of variables, signals or files
        names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if isinstance(before, Marks):
            return ", ".join(sorted(map(os.path.basename, names)))
        return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)
    if isinstance(before, system_flags.Streams):
        return "another object is there"
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
    require_operators()
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


@contextmanager
def importing(*, whole: bool = True) -> Iterator[None]:
    """A user's module is imported: it must leave the harness, the clock and what writes results as they are, and
    nothing that would run between two calls or go on running. What it does to torch is its own affair, as many
    libraries do; where its import fails, that is taken back as well (if `whole`), and so is what it has registered.

    Raises:
        ProcessChanged: it has not.
    """
    functions, flags = Functions(_LEFT_ALONE), tuple(flag.now() for flag in FLAGS)
    functions.put_back()
    others = Members(_LEFT_ALONE) if whole else None
    known = registry()
    threads, processes, process = running_threads(), children(), os.getpid()
    failed = True
    adopt(True)
    try:
        yield
        failed = False
    finally:
        end_if_forked(process)
        found = [f"replaced {', '.join(names)}"] if (names := functions.put_back()) else []
        for flag, old in zip(FLAGS, flags, strict=True):
            if (failed or flag in _BETWEEN) and (changed := _bring_back(flag, old)):
                found.append(changed)
        if left := end_threads(threads):
            found.append(f"left {left}")
        if count := end_children(processes):
            found.append(f"left {count} child processes running")
        adopt(False)
        if failed or found:
            register_only(known)
            if others is not None:
                others.put_back()
    if found:
        raise ProcessChanged(f"while it was imported it {'; it '.join(found)}")


_LEFT_ALONE = ("pft_bench", *(module.__name__ for module in WRITING))
"""How the names of owners begin that the import of a plug-in must not change."""

_BETWEEN = tuple(
    flag
    for flag in FLAGS
    if flag.read
    in (
        *(system_flags.trace_functions, system_flags.monitors, system_flags.alarms, system_flags.audited),
        *(system_flags.collector, torch_flags.modes, torch_flags.hooks, torch_flags.saving_hooks),
        *(system_flags.handlers, system_flags.limits, system_flags.streams),
    )
)
"""Flags for code that could run between two calls, and for limits on what others may use."""
