"""Two versions in worker processes: the same answers, planted slowdowns, crashes, missing cases; and the work tree."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkout import needs_git

from pft_bench.harness.compare import design, revision
from pft_bench.harness.compare.live import Terms, compare_versions
from pft_bench.harness.compare.remote import Version, Worker, WorkerError
from pft_bench.harness.compare.table import VerdictTable
from pft_bench.harness.measure.verdicts import LOOKS, Verdict

SETTINGS = {
    "schedules": ["16,5"],
    "levels": ["op"],
    "device": "cpu",
    "threads": 1,
    "lr_hw": [8, 8],
    "backends": ["cpu"],
}
SMALL = """
import sys
from pft_bench.harness.cases import settings
import pft_bench.harness.problem as problem
# windows of 64 tokens instead of 1024: a test has no time for more
settings.Settings.problem, before = None, settings.Settings.problem
def smaller(self, op, contenders, kept, *args, **more):
    made = before(self, op, contenders, kept, *args, **more)
    from dataclasses import replace
    return replace(made, tokens=64)
settings.Settings.problem = smaller
"""
SLOWER = """
import time
from pft_bench.backends.cpu import CpuBackend
right = CpuBackend.sddmm
def sddmm(self, *arguments):
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return right(self, *arguments)
CpuBackend.sddmm = sddmm
"""
CPU_BACKEND = "from pft_bench.backends.cpu import CpuBackend"
CRASHES = """
import os, signal
works = CpuBackend.spmm
def spmm(self, a, v, index):
    if index.shape[-1] == 16:
        os.kill(os.getpid(), signal.SIGSEGV)
    return works(self, a, v, index)
CpuBackend.spmm = spmm
"""
OLDER = """
from pft_bench.harness.measure.verified import Verified
Verified.changes = False
del Verified.sample
"""
ZEROS_LATER = """
from pft_bench.backends.cpu import CpuBackend
right, calls = CpuBackend.spmm, 0
def spmm(self, a, v, index):
    global calls
    calls += 1
    return right(self, a, v, index) * (calls <= 14)
CpuBackend.spmm = spmm
"""


TEMPLATE = Path(__file__).with_name("template.py")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a process that gives out forks of itself."""
    path = tmp_path_factory.mktemp("template") / "socket"
    command = [sys.executable, "-P", str(TEMPLATE), "serve", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield path
        server.kill()


def version(folder: Path, label: str, patch: str = "", template: Path | None = None) -> Version:
    """This package with a patch, as another Python would have it: applied before the worker's own lines.

    Each worker is a new interpreter, or, with `template`, a new fork of one that has only imported the package.
    """
    folder.mkdir(exist_ok=True)
    script = folder / f"{label}.py"
    script.write_text(
        SMALL
        + patch
        + "\nimport runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    launcher = folder / label
    start = f"-P {script}" if template is None else f"-S -E {TEMPLATE} start {template} {script}"
    launcher.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {start} "$@"\n')
    launcher.chmod(0o755)
    return Version(label, launcher)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_a_planted_slowdown_is_found_a_crash_is_a_row_and_the_rest_is_not_blamed(
    tmp_path: Path, work: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        design, "MAX_BLOCKS", 2
    )  # new inputs for each call take longer than calls that are so short
    # one that looks and never crashes, for the look itself costs some percent of so short a call
    before = version(tmp_path, "before", CPU_BACKEND + CRASHES.replace("== 16", "== -1"), template)
    after = version(tmp_path, "after", SLOWER + CRASHES, template)
    seen: list[VerdictTable] = []
    table = compare_versions(SETTINGS, before, after, ["cpu"], work, Terms(budget_s=1, on_table=seen.append))
    found = {row.title: row for row in table.rows}
    assert set(found) == {f"{op} K={kept}, cpu" for op in ("sddmm", "spmm") for kept in (16, 5)}
    assert found["spmm K=16, cpu"].reason == "B: crashed: its process ended with signal 11"
    verdicts = {title: row.judged.verdict for title, row in found.items() if row.judged is not None}
    assert verdicts.pop("spmm K=5, cpu") in (Verdict.SAME, Verdict.UNDECIDED)
    assert verdicts == {"sddmm K=16, cpu": Verdict.SLOWER, "sddmm K=5, cpu": Verdict.SLOWER}
    assert seen[-1] == table
    for rounds, early in enumerate(seen[:3], start=1):  # no look can decide yet; what is measured is there
        for row in early.rows:
            if row.title != "spmm K=16, cpu":
                assert row.reason == f"not decided yet: {rounds} of at most {LOOKS[-1]} rounds"
                assert row.samples is not None
                assert len(row.samples.a_s) == rounds


def test_no_worker_outlives_a_killed_comparison(tmp_path: Path, work: Path) -> None:
    path = tmp_path / "pids"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nsleep 600 & echo $$ $! > {path}\nwait\n")
    python.chmod(0o755)
    driver = multiprocessing.get_context("forkserver").Process(target=start_and_sleep, args=(python, work))
    driver.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(text) for text in path.read_text().split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    driver.kill()
    driver.join()
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def start_and_sleep(python: Path, folder: Path) -> None:
    worker = Worker(Version("stuck", python), folder)
    time.sleep(600)
    worker.stop()


@pytest.mark.parametrize(
    ("label", "patch", "changes", "told"),
    [("now", "", True, None), ("older", OLDER, False, None), ("cheat", ZEROS_LATER, True, "timed call")],
)
def test_a_version_that_can_change_inputs_judges_what_it_times(
    tmp_path: Path, work: Path, template: Path, label: str, patch: str, changes: bool, told: str | None
) -> None:
    worker = Worker(version(tmp_path, label, patch, template), work)
    try:
        assert worker.ask("changes") is changes
        plan = worker.ask("plan", settings=SETTINGS)
        (case_id,) = (
            item["case_id"] for item in plan if item["title"] == "spmm K=5" and item["backend"] == "cpu"
        )
        assert worker.ask("open", case_id=case_id, block_s=2e-4, fresh=changes)["block_s"] > 0
        found = [worker.ask("sample", blocks=2, settle_s=0.0), worker.ask("finish")]
        if told is None:
            assert len(found[0]) == 2
            assert found[1] is None
        else:
            assert any("rejected" in item and told in item["rejected"][1] for item in found if item)
        worker.ask("close")
    finally:
        worker.stop()


def test_beside_an_older_version_nobodys_inputs_change_and_the_table_says_so(
    tmp_path: Path, work: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design, "LOOKS", (1, *LOOKS[1:]))  # what twelve rounds would decide is not asked here
    before = version(tmp_path, "older", OLDER, template=template)
    after = version(tmp_path, "now", "", template)
    settings = {**SETTINGS, "schedules": ["16"]}
    table = compare_versions(settings, before, after, ["cpu"], work, Terms(budget_s=0.01))
    assert "inputs stay what they were checked on, for older cannot change them" in table.how
    assert all(row.reason is None for row in table.rows)


def test_what_a_worker_cannot_do_is_told_in_its_own_words(tmp_path: Path, work: Path) -> None:
    worker = Worker(version(tmp_path, "here"), work)
    try:
        with pytest.raises(WorkerError, match="here: ValueError: level must be one of"):
            worker.ask("plan", settings={**SETTINGS, "levels": ["kernel"]})
    finally:
        worker.stop()
    broken = Worker(Version("no package", Path("/bin/false")), work)
    with pytest.raises(WorkerError, match="its worker ended"):
        broken.ask("plan", settings=SETTINGS)
    broken.stop()


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs_git
def test_a_commit_is_built_once_in_a_tree_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in package without compiled parts; pip, venv and git are the real ones."""
    root = tmp_path / "repository"
    (root / "pft_bench").mkdir(parents=True)
    (root / "pft_bench" / "__init__.py").write_text("label = 'first'\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    first = git(root, "rev-parse", "HEAD")
    (root / "pft_bench" / "__init__.py").write_text("label = 'second'\n")
    git(root, "commit", "-qam", "second")

    def install(tree: Path, python: Path, build: Path) -> None:
        site = next((python.parent.parent / "lib").glob("python*/site-packages"))
        (site / "pft_bench").symlink_to(tree / "pft_bench")

    monkeypatch.setattr(revision, "install", install)
    made = revision.build("HEAD~1", root, tmp_path / "cache")
    assert first[:10] in made.label
    command = [
        str(made.python),
        "-P",
        "-c",
        "import pft_bench, torch; print(pft_bench.label, torch.__name__)",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert told.split() == ["first", "torch"]
    monkeypatch.setattr(revision, "install", lambda *_: pytest.fail("built twice"))
    assert revision.build(first, root, tmp_path / "cache").python == made.python
    with pytest.raises(ValueError, match="must name a commit"):
        revision.build("no-such-thing", root, tmp_path / "cache")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(ValueError, match="a user without a home: set XDG_CACHE_HOME"):
        revision.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert revision.cache_folder() == Path("/cache/pft_bench/revisions")


@needs_git
def test_an_interrupted_build_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    (root / "file").write_text("x")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")

    def fails(*_: Path) -> None:
        raise revision.BuildFailed("no compiler")

    run = revision._run

    def without_pip(*command: str | Path, **more: Any) -> str:
        """Nothing is installed here, and to unpack pip takes a new environment most of its time."""
        return run(*command, *(["--without-pip"] if "venv" in command else []), **more)

    monkeypatch.setattr(revision, "_run", without_pip)
    monkeypatch.setattr(revision, "install", fails)
    for _ in range(2):  # the second time finds the remains of the first
        with pytest.raises(revision.BuildFailed, match="no compiler"):
            revision.build("HEAD", root, tmp_path / "cache")
