"""What a command starts ends with it, by any signal, with all that was started in turn; how programs are stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pft_bench.common import processes
from pft_bench.common.processes import NOT_STARTED, output_of, started, stoppable

PACKAGE = Path(processes.__file__).parents[1]
DRIVER = f"""
import runpy, signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, where these tests may run
signal.signal(signal.SIGINT, signal.default_int_handler)  # and in a background job
processes = runpy.run_path({processes.__file__!r})
with processes["stoppable"](), processes["started"](["sh", "-c", "sleep 600 & echo $$ $! >&2; wait"]):
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_and_what_it_started_end_with_the_starting_process(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER], stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        pids = [int(text) for text in driver.stderr.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        driver.send_signal(number)
        try:
            driver.wait(30)
        finally:
            driver.kill()
        assert ("KeyboardInterrupt" in driver.stderr.read()) == (number != signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(gone(pid) for pid in pids)


def test_exit_codes_and_output_are_those_of_the_command(tmp_path: Path) -> None:
    done = output_of(["sh", "-c", "pwd; echo wrong >&2; exit 3"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{tmp_path}\n", "wrong\n")
    assert output_of(["sh", "-c", "kill -SEGV $$"]).returncode == 128 + signal.SIGSEGV
    with pytest.raises(FileNotFoundError, match="no program no-such-program"):
        output_of(["no-such-program"])
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert output_of([script]).returncode == NOT_STARTED


def test_a_block_that_ends_early_ends_its_command() -> None:
    with pytest.raises(ZeroDivisionError), started(["sleep", "600"]) as process:
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    pytest.fail("SIGTERM was ignored")


def test_what_asks_a_program_to_stop_interrupts_it_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with pytest.raises(KeyboardInterrupt), stoppable():
            ask_to_stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nothing_else_starts_a_process_that_could_be_left_behind() -> None:
    """The server of the sweep watches its parent itself; a planted cheat is meant to leave one."""
    starts = re.compile(r"\bPopen\(|\bos\.spawn|\bos\.posix_spawn")
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if starts.search(path.read_text())
    }
    assert found == {
        "common/processes.py",
        "harness/sweep/isolation.py",
        "harness/selftest/cheats/process.py",
    }


@pytest.mark.parametrize(("name", "foreign", "said"), [
    ("pft-bench", True, ""), ("pft-bench", False, "at exit"), ("their_program.py", True, "at exit"),
])  # fmt: skip
def test_a_program_in_which_foreign_code_ran_ends_without_what_that_left(
    tmp_path: Path, name: str, foreign: bool, said: str
) -> None:
    program = tmp_path / name
    program.write_text(
        "import atexit, runpy, sys\n"
        f"processes = runpy.run_path({processes.__file__!r})\n"
        "atexit.register(print, 'at exit')\n"
        + "processes['foreign_code_ran']()\n" * foreign
        + "sys.stdout.write('the end ')\nprocesses['end_program'](3)\n"
    )
    ended = subprocess.run([sys.executable, "-S", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split(" ", 2)[2].strip()) == (3, said)
