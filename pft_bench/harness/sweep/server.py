"""The process from which workers are forked: it has imported everything and does nothing else.

A fork of it starts in milliseconds, where a new interpreter takes seconds to import torch; and forking it is safe,
since it has never computed anything: no OpenMP pool, no CUDA context. Each job runs in a fork of its own, so that a
crash, a leak or a corrupted heap ends with its job.

Server and worker are killed by the kernel when their parent dies, however it dies.

A worker runs foreign code, so it has no connection to the supervisor: what its call returned it leaves in memory that
both share, and the server alone says when a worker has begun and how it has ended. What a worker leaves running is
ended before that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import torch

from ...common.processes import die_with_parent
from .. import cases  # noqa: F401 - imported before the first fork, so that no worker has to
from ..measure.process_state import adopt, end_children, own_backends
from .answer import leave_answer
from .board import Board
from .plugins import load_plugins

DUMP_SIGNAL = signal.SIGUSR1
"""Makes a worker write the Python stacks of its threads to its output, even while it hangs in native code."""


@dataclass(frozen=True)
class Job:
    """One call in a worker. `argv` is the command that asked for it, for the environment's record.

    With `fresh` the server does it itself and ends with it: a fork begins without the pages of the libraries, which
    would be missing from its resident memory. `token` marks its answer as one that came this way.
    """

    call: Callable[[Board], Any]
    token: bytes = b""
    plugins: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None
    device: str = "cpu"
    argv: tuple[str, ...] = ()
    fresh: bool = False


@dataclass(frozen=True)
class Started:
    """Sent by the server when a worker has begun."""

    pid: int


@dataclass(frozen=True)
class Ended:
    """Sent by the server when the worker is gone, with all that it started: its exit code, or minus the signal that
    ended it.
    """

    exit_code: int


def _first_to_go() -> None:
    """If the machine's memory runs out, the kernel should end this process and not those that keep the results."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def limit_memory(limit_bytes: int, device: str) -> None:
    """Let this process map `limit_bytes` more than it has mapped already, or allocate that much of a GPU.

    Not both: a CUDA context maps far more addresses than it uses.
    """
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), 0)
        return
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = mapped + limit_bytes if hard == resource.RLIM_INFINITY else min(mapped + limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # the hard one too, or the case could lift it


class Shared(NamedTuple):
    """What the server was started with: the connection to its supervisor, and the descriptors of memory that they share
    (what a worker prints, what it answers).
    """

    connection: Connection
    board: Board
    output: int
    answer: int


def serve(shared: Shared) -> None:
    """Run one job after the other until the supervisor hangs up."""
    while True:
        try:
            job: Job = shared.connection.recv()
        except EOFError:
            return
        server = os.getpid()
        pid = server if job.fresh else os.fork()
        if pid == 0 or job.fresh:
            if job.fresh:
                shared.connection.send(Started(pid))
            _work(job, None if job.fresh else server, shared)
        shared.connection.send(Started(pid))
        _, status = os.waitpid(pid, 0)
        end_children(frozenset())
        shared.connection.send(Ended(os.waitstatus_to_exitcode(status)))


def _work(job: Job, server: int | None, shared: Shared) -> NoReturn:
    """The worker's whole life; runs no exit handlers: they belong to the server, which it was forked from or is."""
    code, streams = 1, (sys.stdout, sys.stderr)
    try:
        shared.connection.close()
        if server is not None:
            die_with_parent(server)
        _first_to_go()
        os.dup2(shared.output, 1)
        os.dup2(shared.output, 2)
        faulthandler.enable()
        faulthandler.register(DUMP_SIGNAL)
        sys.argv = list(job.argv)
        load_plugins(job.plugins, lasting=False)
        if job.memory_limit_bytes is not None:
            limit_memory(job.memory_limit_bytes, job.device)
        value = job.call(shared.board)
        _flush(streams)
        leave_answer(shared.answer, job.token, value)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc(file=streams[1])
        _flush(streams)
    finally:
        _exit(code)


def _flush(streams: Iterable[TextIO]) -> None:
    """Flush the original streams: `sys.stdout` may name another object by now."""
    for stream in streams:
        with contextlib.suppress(Exception):
            stream.flush()


_exit = os._exit
"""This module's own: the name may have been replaced."""


def main() -> None:
    """Serve. Arguments: the inherited descriptors of connection, board, output and answer, and the supervisor's process
    id.
    """
    connection, board, output, answer, supervisor = (int(text) for text in sys.argv[1:])
    die_with_parent(supervisor)
    adopt(True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    # numpy's OpenBLAS has started its threads on import; it stops and restarts them around a fork by itself
    warnings.filterwarnings("ignore", message=".*use of fork\\(\\) may lead to deadlocks")
    importlib.import_module(
        "torch._dynamo"
    )  # counting FLOPs needs it: more than a second, once instead of in each worker
    own_backends()  # imports their modules once, instead of in each worker
    gc.collect()
    gc.freeze()  # so that a worker's collector leaves the shared pages alone
    if torch.cuda.is_initialized():
        raise RuntimeError("something imported has initialised CUDA: no worker could use it after a fork")
    serve(Shared(Connection(connection), Board(board), output, answer))
