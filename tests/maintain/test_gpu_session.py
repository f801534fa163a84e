"""A session on a GPU machine: what is told with a GPU and without one; nothing is lost, whatever goes wrong."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bare
import gpu_items
import psutil
import pytest
import torch

from pft_bench.backends import get, rungs
from pft_bench.backends._cuda_launch import missing_module
from pft_bench.backends.cuda import CudaBackend
from pft_bench.harness.record import RunFolder, Status
from pft_bench.harness.sweep import Workers
from pft_bench.insight.counters import ncu
from pft_bench.maintain.gpu import checks, ladder, session, tools
from pft_bench.maintain.gpu.running import Items, RunningStep, Session, read_results, write_result
from pft_bench.maintain.gpu.summary import last_line, write_summary

pytest.importorskip("pft_bench._cuda_emu")
SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "cuda" / "gpu_test.py"
PATIENCE_S = 60
"""For what takes a moment on an idle machine."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as made:
        made.run(started)
        yield made


def started(board: object) -> None:
    """The first start imports everything."""


@pytest.fixture
def running_of(tmp_path: Path, workers: Workers) -> Callable[..., RunningStep]:
    def make(limit_s: float = PATIENCE_S, kind: type[Session] = Session) -> RunningStep:
        made = kind(tmp_path, rehearse=True)
        return RunningStep(made, "small", time.monotonic() + limit_s, workers)

    return make


def run_items(running: RunningStep, items: Items) -> dict[str, tuple[str, str]]:
    running.run_items(items)
    return {one["item"]: (one["status"], one["detail"]) for one in running.results()}


# -- a step ------------------------------------------------------------------------------------------------------------


def test_each_item_ends_as_it_should_and_costs_no_other(running_of: Callable[..., RunningStep]) -> None:
    running = running_of()
    found = run_items(running, gpu_items.one_of_each)
    assert list(found) == ["right", "wrong", "raises", "segfaults", "process"]
    assert found["right"] == ("ok", "")
    assert found["wrong"] == ("failed", "the values are off; so are the gradients")
    assert found["raises"] == ("error", "RuntimeError: no such | kernel")
    assert found["segfaults"][0] == "crashed"
    assert "SIGSEGV" in found["segfaults"][1]
    assert found["process"][0] == "ok"
    write_summary(running.session, ["small"])
    text = (running.session.out / "summary.md").read_text()
    assert "| small | FAILED 3 of 5 |" in text
    assert "- small: raises: error: RuntimeError: no such \\| kernel" in text
    assert last_line(read_results(running.session.out), ["small"]) == ("FAILED: small (3 of 5)", 1)


def test_a_hang_ends_at_the_limit_and_is_named(running_of: Callable[..., RunningStep]) -> None:
    running, began = running_of(3.0), time.monotonic()
    found = run_items(running, gpu_items.one_that_hangs)
    assert time.monotonic() - began < PATIENCE_S
    assert found["before"][0] == "ok"
    assert found["hangs"][0] == "timeout"
    assert "(hangs)" in found["hangs"][1], "the stack says where"
    assert found["after"] == found["last"] == ("left out", "no time left")


def test_what_does_not_fit_is_said(running_of: Callable[..., RunningStep]) -> None:
    running = running_of(2.0)
    found = run_items(running, gpu_items.more_than_fits)
    ends = [status for status, _ in found.values()]
    assert 0 < ends.count("ok") < 50
    assert set(ends) <= {"ok", "left out", "timeout"}
    assert len(ends) == 50
    _, code = last_line(read_results(running.session.out), ["small"])
    assert code == (1 if "timeout" in ends else 3)


def test_an_error_that_spoils_cuda_is_followed_by_another_process(
    running_of: Callable[..., RunningStep],
) -> None:
    running = running_of(kind=gpu_items.OnGpu)
    found = run_items(running, gpu_items.one_that_poisons)
    assert [status for status, _ in found.values()] == ["ok", "error", "ok"]
    pids = [one["facts"]["pid"] for one in running.results() if "facts" in one]
    assert pids[0] != pids[1]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True), ((7, 5), False), ((10, 0), False)],
)
def test_a_gpu_runs_its_major_number_and_lower_minor_ones(capability: tuple[int, int], runs: bool) -> None:
    assert checks.runs_on("80-real,86-real,90-real,120", capability) is runs
    assert checks.runs_on("86-real", (8, 9))
    assert not checks.runs_on("86-real", (8, 0))


def test_a_device_that_is_gone_ends_the_step_early(running_of: Callable[..., RunningStep]) -> None:
    found = run_items(running_of(kind=gpu_items.OnGpu), gpu_items.a_device_that_goes)
    ends = [status for status, _ in found.values()]
    assert ends == ["ok", *["error"] * 3, *["left out"] * 17]
    assert found["number 19"][1] == "3 processes were lost before"


# -- a session ---------------------------------------------------------------------------------------------------------


def _broken(running: RunningStep) -> None:
    raise RuntimeError("the step itself is broken")


def test_a_step_that_breaks_stops_no_other_and_what_is_unused_goes_to_the_next(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {
        "build": session.Step(50, _broken),
        "small": session.Step(25, lambda running: running.record("x", "ok")),
        "full": session.Step(25, lambda running: running.run_items(gpu_items.more_than_fits)),
    }
    monkeypatch.setattr(session, "STEPS", steps)
    began = time.monotonic()
    assert session.run_session(Session(tmp_path, True), list(steps), 4.0, workers) == 1
    assert time.monotonic() - began < PATIENCE_S
    said = capsys.readouterr().out.splitlines()
    last = said[-1]
    assert last.startswith("passed: small; cut: full (")
    assert f"; FAILED: build (1 of 1) -> {tmp_path / 'summary.md'}" in last
    assert "build: it ended early: error: RuntimeError: the step itself is broken" in said
    limits = {r["step"]: r["facts"]["limit_s"] for r in read_results(tmp_path) if r["item"] == "the step"}
    assert limits["build"] == pytest.approx(2.0, abs=0.3)
    assert 3.0 < limits["full"] <= 4.0, "all that the others left"
    assert said == (tmp_path / "log.txt").read_text().splitlines()


def test_the_summary_is_there_before_the_next_step(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(running: RunningStep) -> None:
        seen.append((running.session.out / "summary.md").read_text())
        raise KeyboardInterrupt

    first = session.Step(1, lambda running: running.record("x", "failed", "wrong"))
    monkeypatch.setattr(session, "STEPS", {"build": first, "small": session.Step(1, look)})
    code = session.run_session(Session(tmp_path, True), ["build", "small"], 60.0, workers)
    assert code == session.INTERRUPTED
    assert "| build | FAILED 1 of 1 |" in seen[0]
    assert "| small | not run |" in seen[0]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([["ok"], ["ok"]], ("passed: a, b", 0)),
        ([["ok"], ["not rehearsed"]], ("passed: a; not rehearsed: b", 0)),
        ([["ok", "left out"], ["ok"]], ("passed: b; cut: a (1 of 2 did not fit)", 3)),
        ([["ok"], ["missing"]], ("passed: a; FAILED: b (1 of 1)", 1)),
        ([["timeout", "left out"], ["ok"]], ("passed: b; FAILED: a (1 of 2)", 1)),
        ([[], ["ok"]], ("passed: b; not run: a", 3)),
    ],
)
def test_the_last_line_and_the_exit_code_say_what_failed(
    tmp_path: Path, states: list[list[str]], expected: tuple[str, int]
) -> None:
    for step, ends in zip("ab", states, strict=True):
        for number, status in enumerate(ends):
            write_result(tmp_path / "results.jsonl", step, str(number), status)
    assert last_line(read_results(tmp_path), ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "build,leather"], f"must be of {', '.join(session.STEPS)}, got 'leather'"),
        (["--budget", "0"], "must be minutes above 0, got '0'"),
        (["--budget", "soon"], "must be minutes above 0, got 'soon'"),
        (["--lr", "192"], "must be HEIGHTxWIDTH, such as 192x352, got '192'"),
        ([], "no GPU: PyTorch sees none here"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_carried_out_says_why(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        session.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_results_of_another_session_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(SystemExit):
        session.main(["--rehearse", "--out", str(tmp_path)])
    assert "--out must be a new folder" in capsys.readouterr().err


# -- tools -------------------------------------------------------------------------------------------------------------


def test_a_tool_is_killed_with_all_that_it_started(running_of: Callable[..., RunningStep]) -> None:
    code, text = tools.run_tool(running_of(), ["bash", "-c", "sleep 1000 & echo $!; wait"], 1.0)
    assert code is None
    child = int(text)
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


MEMCHECK = """========= COMPUTE-SANITIZER
sddmm: ok
========= Invalid __global__ read of size 4 bytes
=========     at pft::cuda::sddmm_plain+0x2b0
========= ERROR SUMMARY: 1 error
"""


@pytest.mark.parametrize(
    ("code", "text", "status", "told"),
    [
        (0, "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", "ok", "0 errors"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "ok", "0 hazards displayed"),
        (9, MEMCHECK, "failed", "1 error; COMPUTE-SANITIZER; Invalid __global__ read of size 4 bytes"),
        (0, "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n", "failed", "2 hazards"),
        (1, "========= ERROR SUMMARY: 0 errors\n", "failed", "the checks of values failed: exit code 1"),
        (0, "all fine\n", "failed", "exit code 0 and no summary: all fine"),
        (1, "========= Error: Device not supported\n", "failed", "Error: Device not supported"),
        (None, MEMCHECK.rsplit("=========", 1)[0], "timeout", "not finished in 30 s; COMPUTE-SANITIZER; Invalid"),
    ],
)  # fmt: skip
def test_what_compute_sanitizer_says_is_read(code: int | None, text: str, status: str, told: str) -> None:
    found = tools.sanitizer_verdict(code, text, 30.0)
    assert found[0] == status
    assert told in found[1]


@pytest.mark.parametrize(
    ("run", "tool"), [(tools.run_sanitizer, "compute-sanitizer"), (tools.run_counters, "ncu")]
)
def test_a_tool_that_is_not_there_is_a_failure_and_in_a_rehearsal_said(
    run: Callable[[RunningStep], None],
    tool: str,
    running_of: Callable[..., RunningStep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    running = running_of()
    run(running)
    run(
        RunningStep(
            dataclasses.replace(running.session, rehearse=False), "full", running.until, running.workers
        )
    )
    found = read_results(running.session.out)
    assert [(one["item"], one["status"]) for one in found] == [(tool, "not rehearsed"), (tool, "missing")]
    assert last_line(found, ["small"])[1] == 0
    assert last_line(found, ["full"])[1] == 1


KERNELS = ["sddmm_resident", "spmm_resident", "spmm_transpose_split", "attention_forward_dense",
           "attention_forward_tiled", "attention_forward_online_split", "attention_forward_sparse",
           "attention_forward_tiled_split"]  # fmt: skip


def made_up_profile() -> str:
    """What Nsight Compute would print: each launch, one wavefront."""
    metric = "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"
    lines = [f'"{n}","{kernel}","{metric}","","1"' for n, kernel in enumerate(KERNELS)]
    return "\n".join(['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"', *lines])


def test_why_there_are_no_counters_is_said(
    running_of: Callable[..., RunningStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    monkeypatch.setattr(ncu, "find_ncu", lambda: "ncu")
    monkeypatch.setattr(tools, "run_tool", lambda *_: (1, denied))
    running = running_of()
    tools.run_counters(running)
    (found,) = running.results()
    assert (found["status"], "ERR_NVGPUCTRPERM" in found["detail"]) == ("failed", True)
    assert (running.session.out / "ncu.csv").read_text() == denied, "what was printed is kept"


def test_counters_that_nobody_had_time_for_are_compared_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pft_bench._cuda_count")
    (tmp_path / "ncu.csv").write_text(made_up_profile())
    write_result(tmp_path / "results.jsonl", "build", "machine", "ok", gpu={"name": "NVIDIA H200"})
    write_result(tmp_path / "results.jsonl", "counters", tools.BESIDE, "left out", "no time left")
    assert last_line(read_results(tmp_path), ["counters"])[1] == 3
    assert session.main(["--rehearse", "--compare", str(tmp_path)]) == 0
    assert last_line(read_results(tmp_path), ["counters"]) == ("passed: counters", 0)
    assert "sddmm_resident | wavefronts |" in (tmp_path / "summary.md").read_text()
    (tmp_path / "ncu.csv").write_text("no table")
    assert session.main(["--rehearse", "--compare", str(tmp_path)]) == 1
    assert "not compared: ncu printed no table" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        session.main(["--compare", str(tmp_path / "nowhere")])
    assert "--compare must be the folder of a session that has profiled" in capsys.readouterr().err


def test_counters_of_other_launches_are_not_compared() -> None:
    pytest.importorskip("pft_bench._cuda_count")
    found = tools.counter_rows("x", True, made_up_profile().replace("spmm_resident", "spmm_plain"))
    assert isinstance(found, str)
    assert "launches must be the same" in found


def test_what_the_profiler_watches_are_those_launches() -> None:
    native = get("cuda-emu").native()  # type: ignore[attr-defined]
    native.configure(dry=True)
    try:
        native.take_dry_launches()
        tools.launch_works(Session(Path(), rehearse=True))
        assert [name for name, *_ in native.take_dry_launches()] == KERNELS
    finally:
        native.configure()


@pytest.mark.parametrize(
    ("device", "chip"),
    [("NVIDIA H100 PCIe", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"),
     ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA T4", None)],
)  # fmt: skip
def test_chips_are_known_by_their_device_name(device: str, chip: str | None) -> None:
    found = tools.chip_of(device)
    assert (found.name if found else None) == chip


# -- the ladder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_plan(monkeypatch: pytest.MonkeyPatch) -> list[ladder.LadderPart]:
    """What would be measured on a GPU with everything installed; nothing of it is run."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("cuda", "triton", "official", *rungs("cuda")):
        monkeypatch.setattr(get(name), "available", lambda: None)
    return ladder.ladder_parts(Session(Path("x")))


def test_the_ladder_has_every_rung_at_the_model_s_shapes(gpu_plan: list[ladder.LadderPart]) -> None:
    groups = {group.title: list(group.cases) for part in gpu_plan for group in part.groups}
    assert len(groups) == sum(len(part.groups) for part in gpu_plan), "one title, one group"
    steps = [(1024, 1024), (1024, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 32),
             (32, 32), (32, 16), (16, 16)]  # fmt: skip
    for dtype in ("float16", "float32"):
        for c, k in steps:
            names = groups[f"{dtype} layer {c} -> {k}"]
            assert {"dense", "cuda", "triton"} <= set(names)
            assert ("official" in names) == (dtype == "float32")
            assert ({"cuda-gather", "cuda-tiles"} <= set(names)) == (dtype == "float16" and c < 1024)
            rungs = (
                {"cuda-split", "cuda-ffma" if c == 1024 else "cuda-gather"} if dtype == "float32" else set()
            )
            assert {"cuda-ffma", "cuda-split"} & set(names) == rungs - {"cuda-gather"}
            assert rungs <= set(names)
        for kept in (256, 128, 64, 32, 16):
            for op in ("sddmm", "spmm", "spmm_transpose"):
                names = groups[f"{dtype} {op} K={kept}"]
                assert ({"cuda-plain", "cuda-resident"} <= set(names)) == (op != "spmm_transpose")
                assert {"dense", "cuda", "triton"} <= set(names)
        assert f"{dtype} layer 256 -> 256, backward" in groups
    cases = [case for part in gpu_plan for group in part.groups for case in group.cases.values()]
    assert {case.shapes["windows"] * case.shapes["heads"] for case in cases} == {66 * 6}
    assert not any("rehearsal" in case.options for case in cases)


@pytest.mark.parametrize("items", [checks.small_items, checks.full_items, checks.determinism_items])
def test_our_own_kernels_are_looked_at_before_others_compile(
    items: Items, gpu_plan: list[ladder.LadderPart]
) -> None:
    names = [item.name for item in items(Session(Path("x")))]
    assert len(set(names)) == len(names)
    others = [name.startswith("triton") for name in names]
    assert others == sorted(others)
    assert any(others)
    if items is not checks.determinism_items:
        assert {name.split()[0] for name in names} >= {"cuda", *rungs("cuda"), "triton"}


def test_what_tells_most_comes_first(gpu_plan: list[ladder.LadderPart]) -> None:
    titles = [group.title for part in gpu_plan for group in part.groups]
    steps = ("256 -> 256", "1024 -> 256", "1024 -> 1024", "64 -> 64")
    assert titles[:4] == [f"float16 layer {step}" for step in steps]
    products = [f"float16 {op} K=256" for op in ("spmm_transpose", "sddmm", "spmm")]
    assert titles[4:8] == [*products, "float32 layer 256 -> 256"]
    assert all("backward" in title for title in titles[-4:])


def test_a_ladder_without_time_says_all_that_it_left_out(running_of: Callable[..., RunningStep]) -> None:
    running = running_of(-1.0)
    ladder.run_ladder(running)
    planned = [group.title for part in ladder.ladder_parts(running.session) for group in part.groups]
    assert [(one["item"], one["status"]) for one in running.results()] == [
        (title, "left out") for title in planned
    ]


def test_a_group_that_is_not_done_in_time_is_left_out(running_of: Callable[..., RunningStep]) -> None:
    running = running_of(-1.0)
    watch = ladder._Watch(running)
    with pytest.raises(ladder.OutOfTime):
        watch.progress(1, 6, "timing")


# -- all of it, on a bare machine --------------------------------------------------------------------------------------

SANITIZER = """#!/bin/sh
# `compute-sanitizer --tool NAME --error-exitcode 9 PROGRAM...`: runs the program for memcheck alone
[ "$2" = racecheck ] && { echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"; exit 9; }
shift 4
"$@" || exit 1
echo "========= ERROR SUMMARY: 0 errors"
"""
PROFILER = f"#!/bin/sh\ncat <<'END'\n{made_up_profile()}\nEND\n"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The whole command where nothing but a handful of packages can be imported, beside tools that are made up."""
    folder = tmp_path_factory.mktemp("bare")
    hidden = bare.hide(folder / "site")
    assert {"nvtx", "pyvips", "psutil", "matplotlib", "safetensors"} <= hidden
    (folder / "bin").mkdir()
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", PROFILER)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--rehearse", "--out", folder / "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site"), "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done, folder / "out"


@pytest.mark.slow
def test_a_rehearsal_goes_through_every_step_on_a_bare_machine(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = rehearsal
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    wanted = "passed: build, small, full, ladder, counters, determinism; FAILED: sanitizer (1 of 2)"
    assert last == f"{wanted} -> {out / 'summary.md'}", done.stdout
    text = (out / "summary.md").read_text()
    assert "a rehearsal in the emulator, nothing was measured" in text
    assert "- sanitizer: racecheck: failed: 1 hazard displayed (1 error, 0 warnings)" in text
    assert "cuda-emu-tiles layer" in (out / "log.txt").read_text(), "what the sanitizer watched"
    assert not [path for path in out.rglob(".*") if path.is_file()], "no locks are left"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ladder.DTYPES)
def test_verify_accepts_the_records_of_a_rehearsal(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path], dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pft_bench.cli.verify import verify

    folder = rehearsal[1] / f"ladder_{dtype}"
    verify(folder)  # raises where a number is not what the raw samples give
    assert "everything agrees with the raw samples" in capsys.readouterr().out
    records = RunFolder.read(folder).records
    assert {record.status for record in records} == {Status.OK}
    assert all(record.timing is not None and record.case.options["rehearsal"] for record in records)
    assert "dense" in {record.case.backend for record in records}
    if dtype == "float16":
        takes = {name for name in rungs("cuda-emu") if torch.float16 in get(name).dtypes}
        assert takes <= {record.case.backend for record in records}
        assert {"sddmm", "spmm", "spmm_transpose"} <= {record.case.op for record in records}


@pytest.mark.slow
def test_counters_stand_beside_those_of_the_profiler(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    pytest.importorskip("pft_bench._cuda_count")
    (rows,) = [
        one["facts"]["counters"] for one in read_results(rehearsal[1]) if "counters" in one.get("facts", {})
    ]
    wavefronts = [row for row in rows if row[2] == "wavefronts"]
    assert [row[1] for row in wavefronts] == KERNELS
    assert all(int(row[3].replace(",", "")) > 1 and row[4] == "1" for row in wavefronts)


# -- without a GPU -----------------------------------------------------------------------------------------------------


def test_a_module_that_was_not_built_is_named_in_words() -> None:
    backend = CudaBackend()
    backend._native = ModuleNotFoundError("No module named 'pft_bench._cuda'")
    reason = backend.available()
    assert reason is not None
    assert reason.startswith(
        "its kernels were not built with this installation; where there is an NVIDIA GPU"
    )
    assert missing_module(ImportError("libcudart.so.13: cannot open shared object file")).endswith(
        "libcudart.so.13: cannot open shared object file"
    )
