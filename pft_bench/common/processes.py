"""Processes that end with the one that started them, however it ends, and with all that they have started themselves.

Run as a script, this file is the guard between the two: it leads the command's process group, and kills the group when
the kernel tells it that the starting process is gone. A guard imports nothing of the project and sleeps.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""What asks a program to stop, besides Ctrl-C: `kill`, a job scheduler, a terminal that is closed."""
NOT_STARTED = 127
"""Exit code of a guard whose command could not be started, as a shell has it."""


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends; `parent` is the process id it must still have.

    The kernel goes by the thread that started this process: it must be one that stays.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP interrupt as Ctrl-C does: what is open is closed, what was begun is put away.

    A signal that somebody handles already, or that is ignored (as under nohup), is left alone.
    """
    ours = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


_foreign: list[bool] = []


def foreign_code_ran() -> None:
    """Note that foreign code ran in this process: it may have left functions that run at the end."""
    _foreign[:] = [True]


def end_program(code: int) -> NoReturn:
    """End the program. Where foreign code ran in it, functions at exit, finalisers and threads that it left do not run;
    a process that merely calls the program, such as a test, ends as usual.
    """
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None) or ""
    own = os.path.basename(file) == "pft-bench" or getattr(spec, "name", "") == "pft_bench.__main__"
    if _foreign and own:
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()  # type: ignore[union-attr]
        _exit(code)
    sys.exit(code)


_exit = os._exit
"""This module's own: the name may have been replaced."""


@contextmanager
def started(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A command under a guard, in a process group of its own; where it still runs, the group ends with the block.

    Args:
        command: the program and its arguments.
        options: for `subprocess.Popen`. The exit code is the command's own, or 128 and the signal that ended it.

    Raises:
        FileNotFoundError: there is no such program.
    """
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


def start(command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
    """As `started`, for those who call `end` themselves."""
    program = os.fspath(command[0])
    if shutil.which(program) is None:
        raise FileNotFoundError(f"there is no program {program}")
    guard = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    return subprocess.Popen([*guard, *command], start_new_session=True, **options)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill what `start` started with its whole group, if it still runs, and close its pipes."""
    if process.poll() is None:  # not reaped: no other group has this id
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was still to be written to one that has ended by itself
                pipe.close()


def output_of(
    command: Sequence[str | os.PathLike[str]], *, cwd: str | os.PathLike[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a command under a guard printed, and its exit code."""
    pipe = subprocess.PIPE
    with started(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        said, errors = process.communicate()
    return subprocess.CompletedProcess(list(command), process.returncode, said, errors)


def _guard(parent: int, command: list[str]) -> NoReturn:
    """Run the command; end its group when the parent is gone."""

    def kill_group(number: int, frame: FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_group)
    die_with_parent(parent, signal.SIGTERM)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, os.fsencode(f"{command[0]}: {error.strerror}\n"))
            os._exit(NOT_STARTED)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2:])
