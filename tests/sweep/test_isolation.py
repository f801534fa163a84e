"""Workers: what comes back from a process that returns, dies, hangs or is killed, and what it leaves behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jobs
import psutil
import pytest

from pft_bench.harness.sweep import Death, Workers, isolation


def test_each_job_has_a_fresh_process_with_its_own_threads_and_our_command(workers: Workers) -> None:
    first, second = workers.run(jobs.touch), workers.run(jobs.touch)
    assert first[0] != second[0] != os.getpid()
    assert first[1:] == second[1:] == (1, float(1 << 20), sys.argv)
    assert not jobs.TOUCHED


@pytest.mark.parametrize(
    ("job", "contender", "words"),
    [
        (jobs.segfault, 1, ("SIGSEGV", "during its timing at", "string_at")),
        (jobs.abort, 0, ("SIGABRT", "during its check at jobs.py:", "(abort): the queue is full")),
        (jobs.leave, 0, ("exit code 3", "during its warm-up")),
        (partial(jobs.allocate, -1), None, ("exit code 1", "during its set-up")),
    ],
    ids=["segfault", "abort", "exit", "exception"],
)
def test_a_death_says_how_where_and_whose_turn_it_was(
    workers: Workers, job: object, contender: int | None, words: tuple[str, ...]
) -> None:
    ended = workers.run(job)  # type: ignore[arg-type]
    assert isinstance(ended, Death)
    assert (ended.status, ended.contender, ended.from_outside) == ("crashed", contender, False)
    for word in words:
        assert word in ended.reason
    assert workers.run(jobs.touch)[1] == 1, "the next job runs"


def test_a_hang_is_killed_and_shows_its_stack(workers: Workers) -> None:
    ended = workers.run(jobs.hang)
    assert isinstance(ended, Death)
    assert (ended.status, ended.contender) == ("timeout", 2)
    assert "no progress for 3 s during its check at jobs.py:" in ended.reason
    assert "in hang" in ended.output


def test_what_ends_while_it_is_being_killed_was_lost_all_the_same(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LAST_WORDS_S", 1.5)
    death = workers.run(jobs.end_late)
    assert isinstance(death, Death)
    assert death.status == "timeout"
    assert workers.run(jobs.touch)[0] != os.getpid(), "the next job has a worker"


def test_a_process_that_was_not_forked_is_the_server_itself_and_ends_alike(workers: Workers) -> None:
    workers.run(jobs.touch)
    assert workers._server is not None
    server = workers._server.pid
    ended = workers.run(jobs.hang, fresh=True)
    assert isinstance(ended, Death)
    assert (ended.status, ended.contender, ended.from_outside) == ("timeout", 2, False)
    assert "in hang" in ended.output
    assert gone(server)
    assert workers.run(jobs.touch)[1] == 1, "the next job runs"


def test_the_timeout_counts_from_the_last_turn(workers: Workers) -> None:
    seen = []
    assert workers.run(jobs.hang_after_progress, seen.append) == "done"
    assert {sight.doing for sight in seen} >= {"timing"}


def test_a_stopped_supervisor_does_not_count_the_time_it_was_stopped() -> None:
    patience = isolation._Patience(2.0)
    sight = isolation.Sight(1, 0, "check", 0, 0)
    assert not patience.lost(sight)
    patience._seen -= 3600  # an hour between two looks: Ctrl-Z, or a suspended laptop
    assert not patience.lost(sight)
    for _ in range(2):
        patience._seen -= 0.7
        lost = patience.lost(sight)
    assert lost


def test_a_worker_that_is_killed_is_told_apart_from_one_that_ran_out_of_memory(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isolation._oom_kills() is not None
    ended = workers.run(jobs.kill_itself)
    assert isinstance(ended, Death)
    assert (ended.status, ended.from_outside) == ("crashed", True)
    assert isolation.cause_of_death(-signal.SIGKILL, isolation._oom_kills() - 1)[0] == "oom"  # type: ignore[operator]
    assert isolation.cause_of_death(-signal.SIGKILL, None)[0] == "oom"
    assert isolation.cause_of_death(-signal.SIGBUS, None) == (
        "crashed",
        "its process died of SIGBUS (Bus error)",
    )


def test_a_memory_limit_holds_for_the_worker_alone(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "memory_limit_bytes", 1 << 28)
    assert workers.run(partial(jobs.allocate, 1 << 20)) == 1 << 20
    ended = workers.run(partial(jobs.allocate, 1 << 30))
    assert isinstance(ended, Death)
    assert "can't allocate memory" in ended.output
    assert workers.run(partial(jobs.allocate, 1 << 30), limited=False) == 1 << 30


def test_a_killed_server_is_replaced(workers: Workers) -> None:
    ended = workers.run(jobs.kill_server)
    assert isinstance(ended, Death)
    assert ended.from_outside
    assert workers.run(jobs.touch)[1] == 1


def test_an_answer_that_the_harness_did_not_write_is_none(workers: Workers, tmp_path: Path) -> None:
    ended = workers.run(jobs.forge_answer)
    assert isinstance(ended, Death)
    assert ended.status == "failed"
    assert "gave an answer that the harness did not write (it does not carry the token" in ended.reason
    for answer, held in (
        (jobs.answer_with_a_call, "posix.mkdir"),
        (jobs.answer_with_a_call_of_ours, "pft_bench.common.drafts.make_folder"),
        (jobs.answer_with_a_class_that_we_import, "pft_bench.harness.sweep.isolation.subprocess.Popen"),
    ):
        ended = workers.run(partial(answer, tmp_path / "made"))
        assert isinstance(ended, Death)
        assert f"(it holds {held})" in ended.reason
        assert not (tmp_path / "made").exists()
    assert workers.run(jobs.touch)[1] == 1, "the next job runs"


def test_a_worker_has_no_connection_to_its_supervisor(workers: Workers) -> None:
    assert workers.run(jobs.say_to_supervisor) == 0


def test_what_a_worker_leaves_running_ends_with_it(workers: Workers, tmp_path: Path) -> None:
    assert workers.run(partial(jobs.leave_a_process, tmp_path / "pid")) == "done"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_worker_that_would_hang_at_its_end_ends(workers: Workers) -> None:
    assert workers.run(jobs.hang_at_the_end) == "done"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    context = multiprocessing.get_context("forkserver")
    supervisor = context.Process(target=jobs.supervise_and_sleep, args=(path,))
    supervisor.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(text) for text in path.read_text().split()]
    assert not any(gone(pid) for pid in pids)
    supervisor.kill()
    supervisor.join()
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)
