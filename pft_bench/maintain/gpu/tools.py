"""The steps in which a tool of the CUDA toolkit watches our kernels: compute-sanitizer and Nsight Compute."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from ...backends import get
from ...common.processes import started
from ...harness.sweep import Death
from ...harness.sweep.board import Board
from ...insight import counters
from ...insight.counters import ncu
from .running import LOG, NCU, RESULTS, RunningStep, Session, read_results, write_result

CHECKERS = ("memcheck", "racecheck")
BESIDE = "beside the emulator's"
LATER = "gpu_test.py --compare FOLDER does it later, without a GPU"
FOUND = 9
"""Exit code of compute-sanitizer where it found something."""
_SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (?P<what>.*)$", re.MULTILINE)


def child(session: Session, only: str) -> list[str]:
    """The command line of this program for a tool to watch. -P: a checkout's own folder is not the package."""
    command = [sys.executable, "-P", "-m", __package__, "--only", only, "--out", str(session.out)]
    return [*command, "--rehearse"] if session.rehearse else command


def run_tool(running: RunningStep, command: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """Exit code and output of a command; None where it was killed, with all that it started, at its limit."""
    code: int | None = None
    with tempfile.TemporaryFile() as output:
        none, same = subprocess.DEVNULL, subprocess.STDOUT
        with (
            started(command, stdin=none, stdout=output, stderr=same) as process,
            suppress(subprocess.TimeoutExpired),
        ):
            code = process.wait(max(1.0, limit_s))
        output.seek(0)
        text = output.read().decode(errors="replace")
    with (running.session.out / LOG).open("a") as log:
        log.write(f"$ {' '.join(command)}\n{text}\n")
    return code, text


def _missing(running: RunningStep, tool: str, where: str) -> None:
    """A tool that is not there: nobody has looked, which a rehearsal may and a session may not pass over."""
    status = "not rehearsed" if running.session.rehearse else "missing"
    running.record(tool, status, f"{tool} is not installed ({where})")


# -- compute-sanitizer -------------------------------------------------------------------------------------------------


def find_sanitizer() -> str | None:
    """Its command, on PATH or in the toolkit."""
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return found if Path(found).is_file() else None


def run_sanitizer(running: RunningStep) -> None:
    """The small check of our own kernels under memcheck, then racecheck; each may take half of what is left."""
    tool = find_sanitizer()
    if tool is None:
        _missing(running, "compute-sanitizer", "it belongs to the CUDA toolkit")
        return
    for number, name in enumerate(CHECKERS):
        limit_s = running.left_s / (len(CHECKERS) - number)
        if limit_s <= 1:
            running.record(name, "left out", "no time left")
            continue
        command = [tool, "--tool", name, "--error-exitcode", str(FOUND), *child(running.session, "sanitized")]
        code, text = run_tool(running, command, limit_s)
        running.record(name, *sanitizer_verdict(code, text, limit_s))


def sanitizer_verdict(code: int | None, text: str, limit_s: float) -> tuple[str, str]:
    """Status and why: right only where the tool ended well and says itself that it found nothing."""
    summary = [found["what"] for found in _SUMMARY.finditer(text)]
    said = [line.lstrip("= ") for line in text.splitlines() if line.startswith("=====")]
    told = "; ".join(line for line in said if line and "SUMMARY" not in line)[:400]
    if code is None:
        return "timeout", f"not finished in {limit_s:.0f} s; {told or 'nothing found until then'}"
    if not summary:
        return "failed", f"exit code {code} and no summary: {told or text.strip()[-400:] or 'no output'}"
    if any(not what.startswith("0 ") for what in summary) or code == FOUND:
        return "failed", f"{'; '.join(summary)}; {told}"
    if code:
        return "failed", f"{'; '.join(summary)}, but the checks of values failed: exit code {code}"
    return "ok", "; ".join(summary)


# -- Nsight Compute ----------------------------------------------------------------------------------------------------


def counter_works(small: bool) -> list[counters.Work]:
    """Launches to be counted: each kind of kernel once, on enough window-heads to fill a device."""
    sizes, k = ((1, 2, 64, 40), (24, 32, 16)) if small else ((22, 6, 1024, 40), (256, 256, 128))
    products = [counters.Work(op, *sizes, k[0], k[0], "float32") for op in counters.PRODUCTS]
    layers = [("float16", sizes[2], k[2], "auto"), ("float16", k[1], k[1], "tiles")]
    layers += [("float32", sizes[2], sizes[2], "auto"), ("float32", k[1], k[2], "gather")]
    layers += [("float32", k[1], k[2], "split")]
    return products + [
        counters.Work("attention", *sizes, c, n, dtype, how=how) for dtype, c, n, how in layers
    ]


def launch_works(session: Session) -> None:
    """Every work's forward launch once, in order: what Nsight Compute watches."""
    for work in counter_works(session.rehearse):
        backend = get(session.family if work.how == "auto" else f"{session.family}-{work.how}")
        if work.op == "attention":
            backend.attention_forward(work.layer(session.device))
            continue
        more = (work.tokens,) if work.op == "spmm_transpose" else ()
        getattr(backend, work.op)(*work.inputs(session.device).values(), *more)
    if session.device == "cuda":
        torch.cuda.synchronize()


def chip_of(device_name: str) -> counters.Chip | None:
    """The chip whose rates are known for a device of this name."""
    names = {"H100": "h100", "H200": "h200", "A100": "a100", "RTX 4090": "rtx4090"}
    return next((counters.CHIPS[ours] for theirs, ours in names.items() if theirs in device_name), None)


def run_counters(running: RunningStep) -> None:
    """Profile the launches, keep what the profiler printed, then hold it against the emulator's counts."""
    tool, path = ncu.find_ncu(), running.session.out / NCU
    if tool is None:
        _missing(running, "ncu", "Nsight Compute")
        return
    command = ncu.command(tool, child(running.session, "launches"))
    code, text = run_tool(running, command, running.left_s)
    path.write_text(text)
    try:
        launches = len(ncu.parse(text))
    except ValueError as error:
        running.record("profiled", "timeout" if code is None else "failed", str(error))
        return
    running.record("profiled", "timeout" if code is None else "ok", f"{launches} launches")
    if running.left_s <= 1:
        running.record(BESIDE, "left out", f"no time left; {LATER}")
        return
    ended = running.run_worker(partial(_beside, running.session))
    if isinstance(ended, Death) and ended.status == "timeout":
        running.record(BESIDE, "left out", f"{ended.reason}; {LATER}")
    elif isinstance(ended, Death):
        running.record(BESIDE, ended.status, ended.reason)
    elif isinstance(ended, str):
        running.record(BESIDE, "failed", ended)
    else:
        running.record(BESIDE, "ok", f"{len(ended)} counters", counters=ended)


def _beside(session: Session, board: Board) -> list[tuple[str, ...]] | str:
    """In a worker: see `counter_rows`, for what the session has profiled."""
    board.turn(0, "check")
    name = "in the emulator" if session.rehearse else torch.cuda.get_device_name()
    return counter_rows(name, session.rehearse, (session.out / NCU).read_text())


def compare_later(session: Session) -> str | None:
    """Add the comparison to a session that has ended, on any machine; why it cannot be made.

    Raises:
        OSError: the session has profiled nothing.
    """
    text = (session.out / NCU).read_text()
    facts = [one.get("facts", {}).get("gpu") for one in read_results(session.out)]
    name = next((str(gpu["name"]) for gpu in facts if gpu), "")
    found = counter_rows(name, session.rehearse, text)
    if isinstance(found, str):
        return found
    path = session.out / RESULTS
    write_result(path, "counters", BESIDE, "ok", f"{len(found)} counters", counters=found)
    return None


def counter_rows(device_name: str, small: bool, profiled: str) -> list[tuple[str, ...]] | str:
    """(step, kernel, what, counted or predicted, Nsight Compute's, ratio) of every counter, or why there are none."""
    reason = counters.why_not()
    if reason is not None:
        return f"the counting emulator is not there, {reason}"
    chip = chip_of(device_name) or counters.CHIPS["h100"]
    ours = []
    for work in counter_works(small):
        for launch in counters.count_launches(work, chip):
            known = counters.instructions_of(launch)
            ours.append((work, launch, counters.predict(work, launch, chip, known)))
    try:
        return [*ncu.beside(ours, ncu.parse(profiled))]
    except ValueError as error:
        return str(error)
