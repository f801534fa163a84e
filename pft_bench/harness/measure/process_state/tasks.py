"""Threads and processes that a call leaves running: how they are seen, and how they end."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Set
from pathlib import Path

from .system_flags import library

GRACE_S = 0.2
"""How long a thread may take to end after a call; it is a fault all the same."""

PR_SET_CHILD_SUBREAPER = 36


def adopt(orphans: bool) -> None:
    """Whether processes whose parent has ended become children of this one, where the system can do that: a process
    that was forked twice is then no stranger.
    """
    with contextlib.suppress(AttributeError, OSError):
        library().prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def children() -> set[int]:
    """Process ids of the children, where the system tells them quickly."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, task.read_text().split()))
        except OSError:  # a thread that has ended
            continue
    return found


GENERATIONS = 100
"""How often children are looked for: when a process ends, its own children become this one's (`adopt`)."""


def end_children(before: Set[int]) -> int:
    """End those that are new, and theirs; how many there were."""
    ended = 0
    for _ in range(GENERATIONS):
        left = children() - before
        if not left:
            break
        ended += len(left)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return ended


def end_if_forked(process: int) -> None:
    """End this process at once if it is not that one: a call forked, and returned in the child too."""
    if _getpid() != process:
        _exit(1)


_getpid, _exit = os.getpid, os._exit
"""This module's own: the names may have been replaced."""


Threads = tuple[frozenset[int], int]
"""All threads that run Python, and how many were started from Python: some run a function of C alone."""


def running_threads() -> Threads:
    """Those of now. The module `threading` knows neither those of C nor what was started below it."""
    return frozenset(sys._current_frames()), _thread._count()


def started(before: Threads, now: Threads) -> bool:
    """Whether threads run that did not: one that has ended meanwhile is nobody's fault."""
    return bool(now[0] - before[0]) or now[1] > before[1]


def end_threads(before: Threads) -> str:
    """End those that are new; in words which they were, empty where there were none."""
    now = running_threads()
    if not started(before, now):
        return ""
    left = now[0] - before[0]
    known = {thread.ident: thread.name for thread in threading.enumerate()}
    names = ", ".join(known.get(ident, "unnamed") for ident in sorted(left)[:3])
    _end(left, before[1])
    return f"{max(len(left), now[1] - before[1])} threads running ({names or 'unnamed'})"


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
