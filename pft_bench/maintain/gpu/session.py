"""The command: which steps, in which order, within which time.

    build         what was built, for which GPU; what else is there
    small         correctness of every rung on odd sizes, forward and backward, against float64
    full          the same on the windows of the classical model
    ladder        every rung, Triton, the published kernels and masked dense attention, timed by the sweep: a run folder
                  for each dtype, which `pft-bench verify` and `report` read
    counters      Nsight Compute's counters beside those of the emulator, measured time beside predicted time
    sanitizer     compute-sanitizer (memcheck, racecheck) on the small check
    determinism   ten runs of every gradient, bit for bit

Each step may use its share of the time that is left, and each result is on the disk before the next one is looked for:
--out holds summary.md, results.jsonl, log.txt, ncu.csv and the run folders. A step that fails, crashes or hangs costs
nothing of the others. The last line names what failed and what did not fit.

Exit code 0: all is right; 1: something failed, or a tool was missing so that nobody has looked; 2: the command cannot
be carried out; 3: nothing failed, and not everything fitted into the budget; 130: interrupted.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch

from ...common.drafts import make_folder
from ...common.processes import stoppable
from ...common.terminal import Console
from ...common.text import told
from ...harness.record import lock_folder
from ...harness.sweep import Workers
from . import checks, tools
from .ladder import run_ladder
from .running import RESULTS, Item, Items, RunningStep, Session, read_results, say
from .summary import END, last_line, write_summary

BUDGET_MIN = 12.0
INTERRUPTED = 130


class Step(NamedTuple):
    """One step: its share of a session's time in percent, and what runs it."""

    share: float
    run: Callable[[RunningStep], None]


def _items(items: Items) -> Callable[[RunningStep], None]:
    return lambda running: running.run_items(items)


STEPS: dict[str, Step] = {
    "build": Step(8, _items(checks.build_items)),  # starts the process from which all others are forked
    "small": Step(8, _items(checks.small_items)),
    "full": Step(12, _items(checks.full_items)),
    "ladder": Step(44, run_ladder),
    "counters": Step(11, tools.run_counters),
    "sanitizer": Step(11, tools.run_sanitizer),
    "determinism": Step(6, _items(checks.determinism_items)),
}
ONLY: dict[str, Callable[[Session], int]] = {}
"""What a tool watches: this program, started again with `--only`."""


def run_session(session: Session, names: Sequence[str], budget_s: float, workers: Workers) -> int:
    """Run the named steps; the exit code."""
    ends = time.monotonic() + budget_s
    try:
        with stoppable():
            for number, name in enumerate(names):
                shares = [STEPS[later].share for later in names[number:]]
                limit_s = max(0.0, ends - time.monotonic()) * shares[0] / sum(shares)
                _run_step(session, name, limit_s, workers)
                write_summary(session, names)
    except KeyboardInterrupt:
        say(session, f"interrupted; what was found is in {session.out}")
        return INTERRUPTED
    finally:
        path = write_summary(session, names)
    text, code = last_line(read_results(session.out), names)
    say(session, f"{text} -> {path}")
    return code


def _run_step(session: Session, name: str, limit_s: float, workers: Workers) -> None:
    """One step. Whatever it raises is a failure of its own."""
    started = time.monotonic()
    running = RunningStep(session, name, started + limit_s, workers)
    say(session, f"-- {name}: at most {limit_s:.0f} s")
    try:
        STEPS[name].run(running)
    except Exception as error:
        running.record("it ended early", "error", f"{type(error).__name__}: {told(error)}")
    seconds = time.monotonic() - started
    running.record(END, "done", f"{seconds:.0f} s", seconds, limit_s=round(limit_s, 1))


# -- what a tool watches -----------------------------------------------------------------------------------------------


def _only_sanitized(session: Session) -> int:
    """The small check in this process; 1 if anything is wrong."""
    wrong = [item.name for item in checks.sanitized_items(session) if not _passes(item)]
    return int(bool(wrong))


def _passes(item: Item) -> bool:
    found = item.run()
    Console().print(f"{item.name}: {'; '.join(found.failures) or 'ok'}")
    return not found.failures


def _only_launches(session: Session) -> int:
    tools.launch_works(session)
    return 0


ONLY |= {"sanitized": _only_sanitized, "launches": _only_launches}


# -- the command -------------------------------------------------------------------------------------------------------


def _steps(text: str) -> list[str]:
    asked = [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name not in STEPS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"must be of {', '.join(STEPS)}, got {', '.join(map(repr, unknown))}"
        )
    return [name for name in STEPS if name in asked]


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be minutes above 0, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, such as 192x352, got {text!r}")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="new folder; default: reports/gpu/<date>_<device>")
    parser.add_argument("--steps", type=_steps, default=list(STEPS), metavar="A,B,...", help="default: all")
    parser.add_argument(
        "--budget", type=_minutes, default=BUDGET_MIN, metavar="MINUTES", help=f"default: {BUDGET_MIN:g}"
    )
    parser.add_argument(
        "--lr", type=_size, default=Session.lr_hw, metavar="HxW",
        help="image of the ladder; default: 192x352, 66 windows of 32x32",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true",
        help="all steps on small shapes in the emulator; without --out, its files are removed in the end",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=Path, metavar="FOLDER",
        help="only hold the ncu.csv of a session that has ended against the emulator's counts; needs no GPU",
    )  # fmt: skip
    parser.add_argument("--only", choices=ONLY, help=argparse.SUPPRESS)
    return parser


def _device_name() -> str:
    """The first GPU's, for a folder's name."""
    command = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    first = said.splitlines()[0] if said.strip() else "gpu"
    return re.sub(r"[^A-Za-z0-9.]+", "-", first).strip("-")


def _compare(parser: argparse.ArgumentParser, session: Session) -> int:
    """The comparison of counters alone, for a session that had no time for it."""
    try:
        reason = tools.compare_later(session)
    except OSError as error:
        parser.error(f"--compare must be the folder of a session that has profiled: {told(error)}")
    if reason is not None:
        Console().print(f"not compared: {reason}")
        return 1
    Console().print(f"compared -> {write_summary(session, list(STEPS))}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.only:
        return ONLY[options.only](Session(options.out, options.rehearse))
    if options.compare:
        return _compare(parser, Session(options.compare, options.rehearse))
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no GPU: PyTorch sees none here; --rehearse goes through all steps in the emulator")
    with ExitStack() as stack:
        out = options.out
        if out is None and options.rehearse:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pft_bench-")))
        elif out is None:
            out = Path("reports", "gpu", f"{datetime.now():%Y-%m-%d-%H%M%S}_{_device_name()}")
        if (out / RESULTS).exists():
            parser.error(f"--out must be a new folder, got {out}, which holds the results of a session")
        session = Session(make_folder(out).resolve(), options.rehearse, options.lr)
        stack.callback((session.out / ".lock").unlink, missing_ok=True)
        stack.enter_context(lock_folder(session.out))
        workers = stack.enter_context(Workers(device=session.device))
        return run_session(session, options.steps, 60 * options.budget, workers)
