"""The supervisor's side: a fresh process for each job, and what to make of one that dies or hangs."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Self

from ...common.messages import UserError
from ..cases import Group, Listener, explained, run_or_explain
from ..measure.process_state import Find, watching_files
from ..measure.results import Rejection
from ..record import Record
from .answer import ForgedAnswer, clear_answer, read_answer
from .board import Board, Sight
from .server import DUMP_SIGNAL, Ended, Job, Started

TICK_S = 0.5
"""How often the supervisor looks: rarely, because it shares the processors with what is being timed."""
# Not `-m`: the module would exist twice, and what it sends would be of classes that are not ours.
SERVER = f"from {__package__} import server; server.main()"
"""What the process runs from which workers are forked."""
LAST_WORDS_S = 1.0
"""Time for a worker to write its stacks before it is killed."""
KILL_S = 60.0
"""A process that outlives SIGKILL for longer hangs in a driver; it is left behind."""
OUTPUT_KEPT = 1 << 16
PARDONS = 2
"""Times that a group runs again because somebody else killed its process, before the case becomes a row after all."""
FORGED = "its process gave an answer that the harness did not write ({})"
FROM_OUTSIDE = "killed from outside (SIGKILL, and memory had not run out)"

Watch = Callable[[Sight], None]
DeathStatus = Literal["oom", "crashed", "timeout", "failed"]


class WorkersFailed(UserError, RuntimeError):
    """No worker can be started, or it could not do what every run needs."""


@dataclass(frozen=True)
class Death:
    """How a worker ended that gave no result, and whose turn it was (None: the set-up's)."""

    status: DeathStatus
    reason: str
    contender: int | None
    output: str
    from_outside: bool = False
    """Killed by somebody else: nothing that the case is to blame for, as far as can be told."""


class Workers:
    """Runs calls in fresh processes, one at a time. A context manager; what it started ends with it.

    Args:
        plugins: imported in each worker before its call.
        timeout_s: seconds that one turn of one contender may last (its check, its warm-up, one sample, ...).
        memory_limit_bytes: what a worker may allocate beyond what it starts with; None: no limit.
        device: which memory is limited: "cpu" or "cuda".
    """

    def __init__(
        self,
        plugins: tuple[str, ...] = (),
        *,
        timeout_s: float = 1800.0,
        memory_limit_bytes: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.plugins, self.timeout_s = plugins, timeout_s
        self.memory_limit_bytes, self.device = memory_limit_bytes, device
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._board_file = Board.make()
        self._board = Board(self._board_file)
        self._answer = os.memfd_create("pft_bench-answer", 0)
        self._output = os.memfd_create("pft_bench-output", 0)
        fcntl.fcntl(self._output, fcntl.F_SETFL, os.O_APPEND)  # a worker starts where the file was cut

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_server()
        for descriptor in (self._output, self._answer, self._board_file):
            os.close(descriptor)

    def _start_server(self) -> Connection:
        ours, theirs = Pipe()
        passed = (theirs.fileno(), self._board_file, self._output, self._answer)
        code = f"import sys; sys.path[:] = {sys.path!r}; {SERVER}"
        self._server = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, passed), str(os.getpid())],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection = ours
        return ours

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.kill()  # its worker, if any, ends with it
            self._server.wait()
        if self._connection is not None:
            self._connection.close()
        self._server = self._connection = None

    def run(
        self,
        call: Callable[[Board], Any],
        watch: Watch | None = None,
        *,
        limited: bool = True,
        fresh: bool = False,
    ) -> Any | Death:
        """What `call(board)` returns in a process of its own, or how that process died.

        `call` and its result must be picklable. `limited=False` lifts the memory limit. `fresh`: a process that was
        not forked, as a program has it; it takes seconds to start.
        """
        limit = self.memory_limit_bytes if limited else None
        self._board.clear()
        os.ftruncate(self._output, 0)
        clear_answer(self._answer)
        token = os.urandom(16)
        connection = self._connection or self._start_server()
        oom_kills = _oom_kills()
        try:
            connection.send(Job(call, token, self.plugins, limit, self.device, tuple(sys.argv), fresh))
            ended = self._wait(partial(self._receive, connection, fresh), watch)
            return self._answered(ended, token, oom_kills) if isinstance(ended, Ended) else ended
        except (EOFError, ConnectionError):
            self._stop_server()
            return self._death("crashed", "the process that starts workers died", from_outside=True)
        except BaseException:
            self._stop_server()  # an interrupt must not leave a worker behind
            raise

    def _receive(self, connection: Connection, fresh: bool) -> Any:
        """The next message, None if there is none for a while. Where the server itself works, its end is the last."""
        if fresh and self._server is not None and connection.closed:
            return self._end_of_server()
        if not connection.poll(TICK_S):
            return None
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            if not fresh or self._server is None:
                raise
            connection.close()
            return self._end_of_server()

    def _end_of_server(self) -> Ended | None:
        """How the server ended that worked itself, None if it works still."""
        assert self._server is not None
        try:
            ended = Ended(self._server.wait(TICK_S))
        except subprocess.TimeoutExpired:
            return None
        self._stop_server()
        return ended

    def _wait(self, receive: Callable[[], Any], watch: Watch | None) -> Ended | Death:
        pid, patience = 0, _Patience(self.timeout_s)
        while True:
            message = receive()
            if isinstance(message, Started):
                pid = message.pid
            elif isinstance(message, Ended):
                return message
            sight = self._board.look()
            if watch is not None:
                watch(sight)
            if pid and patience.lost(sight):
                self._kill(receive, pid)
                return self._death("timeout", f"no progress for {self.timeout_s:g} s")

    def _answered(self, ended: Ended, token: bytes, oom_kills: int | None) -> Any | Death:
        """What a worker that has ended left behind."""
        if ended.exit_code == 0:
            try:
                return read_answer(self._answer, token)
            except EOFError:
                pass
            except ForgedAnswer as error:
                return self._death("failed", FORGED.format(error))
        return self._death(*cause_of_death(ended.exit_code, oom_kills))

    def _kill(self, receive: Callable[[], Any], pid: int) -> None:
        with suppress(ProcessLookupError):  # it may end by itself meanwhile, and its `Ended` be on the way
            os.kill(pid, DUMP_SIGNAL)
            time.sleep(LAST_WORDS_S)
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_S
        while time.monotonic() < deadline:
            if isinstance(receive(), Ended):
                return
        self._stop_server()

    def output(self) -> str:
        """What the last worker wrote to its standard output and error, the end of it."""
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, OUTPUT_KEPT, max(0, size - OUTPUT_KEPT))
        return data.decode(errors="replace")

    def _death(self, status: DeathStatus, cause: str, *, from_outside: bool = False) -> Death:
        sight, output = self._board.look(), self.output()
        where = "" if (frame := innermost_frame(output)) is None else f" at {frame}"
        words = "" if (last := last_words(output)) is None else f": {last}"
        reason = f"{cause} during its {sight.doing}{where}{words}"
        contender = None if sight.contender < 0 else sight.contender
        return Death(status, reason, contender, output, from_outside or cause == FROM_OUTSIDE)


class _Patience:
    """Counts how long a turn has lasted, by the supervisor's own ticks: if both were stopped, nobody hung."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s, self._turn, self._lasted_s = timeout_s, -1, 0.0
        self._seen = time.monotonic()

    def lost(self, sight: Sight) -> bool:
        """Whether the turn that is on the board has lasted too long."""
        now = time.monotonic()
        passed_s, self._seen = min(now - self._seen, 2 * TICK_S), now
        if sight.turn != self._turn:
            self._turn, self._lasted_s = sight.turn, 0.0
        else:
            self._lasted_s += passed_s
        return self._lasted_s > self._timeout_s


def _oom_kills() -> int | None:
    """How many processes this kernel has killed for memory so far; None where it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])


def cause_of_death(exit_code: int, oom_kills_before: int | None) -> tuple[Literal["oom", "crashed"], str]:
    """Status and words for the end of a worker that gave no result.

    SIGKILL is what the kernel sends when memory runs out; that it did so is on its count of such kills.
    """
    if exit_code >= 0:
        return "crashed", f"its process ended with exit code {exit_code}"
    number = -exit_code
    try:
        name = f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        now = _oom_kills()
        if now is None or oom_kills_before is None:
            return "oom", "killed, as the kernel does when memory runs out,"
        if now > oom_kills_before:
            return "oom", "killed by the kernel because memory ran out"
        return "crashed", FROM_OUTSIDE
    return "crashed", f"its process died of {name}"


_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


def innermost_frame(output: str) -> str | None:
    """`file:line (function)` of the first frame of the last stack that faulthandler wrote, None without one."""
    stack = output.rpartition("most recent call first")[2]
    found = _FRAME.search(stack) if stack != output else None
    return None if found is None else f"{Path(found['file']).name}:{found['line']} ({found['name']})"


def last_words(output: str) -> str | None:
    """The last line a worker wrote before any stack, e.g. what an abort said; None if it said nothing."""
    said = re.split(
        r"^(?:Fatal Python error|Current thread|Thread 0x|Traceback)", output, flags=re.MULTILINE
    )[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else None


def _in_worker(
    group: Group, environment: str, lost: dict[str, Rejection], find: Find | None, board: Board
) -> list[Record]:
    """Runs in the worker: the group's records. They cross as they are, and become lines where they are written."""
    names = list(group.cases)
    listener = Listener(
        on_progress=lambda progress: board.progress(progress.rounds, progress.planned),
        on_turn=lambda name, doing: board.turn(names.index(name), doing),
    )
    with watching_files(find):
        return run_or_explain(group, environment, listener, lost)


def _are_of(records: object, group: Group, environment: str) -> bool:
    """Whether these are the group's records, each case once and no other."""
    return (
        isinstance(records, list)
        and all(isinstance(one, Record) and one.environment == environment for one in records)
        and [one.case for one in records] == [*group.cases.values()]
    )


def run_isolated(
    workers: Workers,
    group: Group,
    environment: str,
    watch: Watch | None = None,
    on_death: Callable[[str | None, Death], None] | None = None,
    find: Find | None = None,
) -> list[Record]:
    """The records of a group that ran in a process of its own; `find` are the files that must stay meanwhile.

    When the process dies in a contender's turn, the group runs again without that contender: the others are measured,
    interleaved as ever, and it becomes a row. When it dies before anybody's turn, all its cases do. A process that was
    killed from outside is started again.

    Whose turn it was is written where the code of a plug-in can write too. So where it was nobody's, or that of a
    contender of this project, plug-ins are set aside first: if the others then live, they were not to blame. What gives
    an answer that is none of the harness's has lost all plug-ins at once.
    """
    lost: dict[str, Rejection] = {}
    aside: dict[str, Rejection] = {}
    names = list(group.cases)
    pardons = PARDONS
    while True:
        call = partial(_in_worker, group, environment, lost | aside, find)
        ended = workers.run(call, watch, fresh=group.fresh)
        if not isinstance(ended, Death):
            if _are_of(ended, group, environment):
                return list(ended)
            ended = Death(
                "failed", FORGED.format("other rows than those of its group"), None, workers.output()
            )
        if ended.from_outside and pardons:
            pardons -= 1
            continue
        name = None if ended.contender is None else names[ended.contender]
        if on_death is not None:
            on_death(name, ended)
        rejection = Rejection(ended.status, ended.reason)
        suspects = group.foreign() - lost.keys() - aside.keys()
        if suspects and ended.status == "failed":
            lost |= dict.fromkeys(suspects, rejection)
        elif suspects and name not in suspects:
            aside = dict.fromkeys(suspects, rejection)
        elif name is None or name in lost or name in aside:
            return explained(group, environment, rejection, lost)
        else:
            lost[name], aside = rejection, {}
