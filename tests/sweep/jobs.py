"""What the tests run in workers, and the program as a function; importable from a process that only has the path."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pft_bench.common.drafts import make_folder

TOUCHED: list[int] = []
PLUGIN = str(Path(__file__).parent / "planted.py")
TINY = (
    *("run", "--plugin", PLUGIN, "--preset", "tiny_x2", "--lr", "8x8", "--level", "op"),
    *("--rounds", "6", "--budget", "0.1", "--threads", "1"),
)
"""`pft-bench run` on the sparse products of a model so small that a sweep of it takes seconds."""


def quick():
    """Measure in this process, and in the servers that it starts, for as short as tiny calls allow; not a plug-in's
    to do, which may change nothing of the harness.
    """
    from pft_bench.harness.measure import roof, timer
    from pft_bench.harness.sweep import isolation, sweep
    from pft_bench.report import write

    write.pictures = lambda folder: []  # plots take as long as the measurements
    roof.MATRIX_SIDE, roof.COPY_BYTES = 64, 1 << 20
    timer.WARMUP_S = 0.01
    # new inputs take ten times as long as a tiny call
    timer.CpuTimer.__init__.__defaults__ = (timer.MIN_BLOCK_S / 10,)
    # beside another test a right timer may fail its audit; tests/conftest.py has who tests that alone
    sweep.audit = lambda *_: []
    gc.collect = lambda *_: 0  # a tenth of a second in a full process, several times a case
    isolation.SERVER = QUICK_SERVER


QUICK_SERVER = "import jobs; jobs.quick(); from pft_bench.harness.sweep import server; server.main()"


def touch(board):
    """Change this process for good; how often it was changed before, its threads' answer, its command."""
    TOUCHED.append(1)
    torch.set_num_threads(2)
    total = (torch.ones(1 << 20) @ torch.ones(1 << 20)).item()  # wants the OpenMP pool
    return os.getpid(), len(TOUCHED), total, list(sys.argv)


def segfault(board):
    board.turn(1, "timing")
    ctypes.string_at(0)


def abort(board):
    board.turn(0, "check")
    os.write(2, b"the queue is full\n")
    os.abort()


def leave(board):
    board.turn(0, "warm-up")
    sys.exit(3)


def hang(board):
    board.turn(2, "check")
    time.sleep(60)


def end_late(board):
    board.turn(2, "check")
    time.sleep(3.6)


def hang_after_progress(board):
    """Twelve turns, each well inside a time-out that all of them together exceed."""
    for turn in range(12):
        board.turn(turn % 2, "timing")
        time.sleep(0.3)
    return "done"


def kill_itself(board):
    board.turn(0, "timing")
    os.kill(os.getpid(), signal.SIGKILL)


def kill_server(board):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def allocate(size, board):
    return torch.empty(size, dtype=torch.uint8).numel()


def forge_answer(board):
    """Write an answer of its own into the shared memory, and end with exit code 0."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if "pft_bench-answer" in os.readlink(f"/proc/self/fd/{name}"):
                os.pwrite(int(name), pickle.dumps("forged"), 0)
    os._exit(0)


def say_to_supervisor(board):
    """Send through every connection of the process; how many took it."""
    said = 0
    for item in gc.get_objects():
        if isinstance(item, Connection):
            with suppress(OSError):
                item.send("forged")
                said += 1
    return said


class Calls:
    """An object that is unpickled by a call."""

    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


def answer_with_a_call(path, board):
    return Calls(os.mkdir, str(path))


def answer_with_a_call_of_ours(path, board):
    return Calls(make_folder, str(path))


def answer_with_a_class_that_we_import(path, board):
    """Under the name that it has in a module of this project."""
    subprocess.Popen.__module__ = "pft_bench.harness.sweep.isolation"
    subprocess.Popen.__qualname__ = "subprocess.Popen"
    return Calls(subprocess.Popen, ["mkdir", str(path)])


def leave_a_process(path, board):
    """A process whose parent has ended, in a session of its own."""
    if not os.fork():
        os.setsid()
        if not os.fork():
            path.write_text(str(os.getpid()))
            time.sleep(60)
        os._exit(0)
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return "done"


class HangingOutput:
    """Its `flush` hangs."""

    def write(self, text):
        return len(text)

    def flush(self):
        time.sleep(60)


def hang_at_the_end(board):
    """In the flush of standard output, and in a function at exit."""
    sys.stdout = HangingOutput()
    atexit.register(time.sleep, 60)
    return "done"


def sleep_long(path, board):
    path.write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(60)


def supervise_and_sleep(path):
    """A supervisor to be killed while its worker sleeps."""
    from functools import partial

    from pft_bench.harness.sweep import Workers

    with Workers() as workers:
        workers.run(partial(sleep_long, path))


def program(arguments):
    """`pft-bench` with these arguments, in this process."""
    from pft_bench.cli import main

    quick()
    sys.argv = ["pft-bench", *arguments]
    main()
