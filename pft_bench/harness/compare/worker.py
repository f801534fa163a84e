"""One side of a comparison between two versions of this package: a script that either version's Python runs.

It is started as `python -P worker.py TIMER.py`, reads one JSON request a line and answers each with one line. It
touches the package through `Settings.make`, `plan_groups`, `Group.cases`, `Group.contenders` and `verify` only, so
that it can drive older versions too, and times all of them with the one timer whose file it is given. What versions
that know it do besides (inputs that change, results that are judged, the process that is watched) is asked for with
`changes`; beside a version that does not, nobody's inputs change.

`open` forks: each layout of a case lives in a process of its own, with its own memory, and a crash in it is an answer.
Nothing that starts threads may run before the fork, so the parent only imports.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from typing import Any

OLDER_ADMISSION = ("measure.contender", "measure.candidate")
"""Where older versions have what admits a contender to the timer, and what it is then."""


def part(*names: str) -> Any:
    """A module of the harness: the first that this version of the package has, in whichever folder it keeps it."""
    for name in (f"{folder}.{name}" for name in names for folder in ("pft_bench.harness", "pft_bench")):
        if _exists(name):
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"this version of the package has none of {', '.join(names)}")


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the folder it would be in
        return False


class Side:
    """The state of this worker: its groups by case, and what is open."""

    def __init__(self, timer_file: str) -> None:
        specification = importlib.util.spec_from_file_location("compare_timer", timer_file)
        assert specification is not None
        assert specification.loader is not None
        self.timing = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.timing)
        self.groups: dict[str, tuple[Any, str]] = {}
        self.settings: Any = None
        self.subject: Any = None
        self.timer: Any = None
        self.held = contextlib.ExitStack()
        self.repeats = 0
        self.slots = 0

    def changes(self) -> bool:
        """Whether this version changes inputs between timed calls and judges their results."""
        return hasattr(part("measure.verified", *OLDER_ADMISSION).Verified, "sample")

    def plan(self, settings: dict[str, Any]) -> Any:
        """All cases of the settings: id, title and backend."""
        cases = part("cases")
        self.settings = cases.Settings.make(**settings)
        if self.changes():  # what holds the functions imports it: once here, instead of in each child
            importlib.import_module("torch._dynamo")
        told = []
        for group in cases.plan_groups(self.settings):
            for name, case in group.cases.items():
                self.groups[case.case_id] = group, name
                told.append({"case_id": case.case_id, "title": group.title, "backend": name})
        return told

    def open(self, case_id: str, block_s: float, fresh: bool) -> Any:
        """Build the case's inputs, check it, warm it up; the rough seconds of one timed block.

        With `fresh`, inputs change between calls, as far as this version can do that.
        """
        import torch

        checked = part("measure.admission", *OLDER_ADMISSION)
        torch.set_num_threads(self.settings.threads)
        torch.set_grad_enabled(self.settings.mode != "infer")
        group, name = self.groups[case_id]
        build = getattr(group, "contenders", None) or group.candidates  # as older versions call it
        contender = next(item for item in build() if item.name == name)
        if self.changes():
            holding = part("measure.process_state", "measure.process").holding_functions
            self.held.enter_context(holding())  # until this process ends
            keeps = part("measure.guards").without_guards(*(() if fresh else ("fresh inputs",)))
        else:
            keeps = contextlib.nullcontext()
        with keeps:
            found = checked.verify(contender)
        if isinstance(found, checked.Refused):
            return {"rejected": [found.rejection.status, found.rejection.reason]}
        self.subject = found
        device = torch.device(self.settings.device)
        cpu = device.type == "cpu"
        self.timer = self.timing.CpuTimer(block_s) if cpu else self.timing.CudaEventTimer(device)
        self.timer.warm_up(found)
        self.repeats = self.timer.calibrate(found)
        fastest = min(self.timer.sample_s(found, self.repeats) for _ in range(5)) * self.repeats
        return {"block_s": fastest, "method": self.timer.method}

    def sample(self, blocks: int, settle_s: float) -> Any:
        """Timed blocks after `settle_s` of untimed calls: the processor last worked for another process."""
        if not self.changes():
            return self._blocks(blocks, settle_s)
        self.slots += 1
        return self._unless_wrong(lambda: self._watched(blocks, settle_s))

    def finish(self) -> Any:
        """Hold the last result against what its inputs must give."""
        return self._unless_wrong(self.subject.finish) if self.changes() else None

    def _watched(self, blocks: int, settle_s: float) -> list[float]:
        with self.subject.sample(self.slots, blocks * self.repeats):
            seconds = self._blocks(blocks, settle_s)
        if hasattr(self.subject, "took") and self.timer.method.startswith("cpu"):
            self.subject.took(sum(seconds) * self.repeats)
        return seconds

    def _blocks(self, blocks: int, settle_s: float) -> list[float]:
        import time

        started = time.perf_counter()
        self.timing.untimed(self.subject)
        while time.perf_counter() - started < settle_s:
            self.timing.untimed(self.subject)
        return [self.timer.sample_s(self.subject, self.repeats) for _ in range(blocks)]

    def _unless_wrong(self, do: Any) -> Any:
        """What `do` returns; why there is no time, if it raises."""
        try:
            return do()
        except Exception as error:
            found = part("measure.admission", *OLDER_ADMISSION).rejection_of(error)
            return {"rejected": [found.status, found.reason]}


def serve(side: Side, reads: Any, writes: int, *, child: bool = False) -> None:
    """Answer requests until the input ends; a child, until its case is closed."""
    for line in iter(reads.readline, b""):
        request = json.loads(line)
        if request["do"] == "close" and child:
            os._exit(0)
        elif request["do"] == "close":
            told = {"ok": None}
        elif request["do"] == "open":
            told = in_child(side, request, reads, writes)
        else:
            told = encode(side, request)
        os.write(writes, json.dumps(told).encode() + b"\n")


def in_child(side: Side, request: dict[str, Any], reads: Any, writes: int) -> dict[str, Any]:
    """Serve one case in a fork of this process; the answer to the `close` that ended it, or what it died of."""
    pid = os.fork()
    if pid == 0:
        os.write(writes, json.dumps(encode(side, request)).encode() + b"\n")
        serve(side, reads, writes, child=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return {"ok": None}
    return {
        "ok": {"rejected": ["crashed", f"its process ended with {f'signal {-code}' if code < 0 else code}"]}
    }


def encode(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request; an exception becomes its text."""
    try:
        return {"ok": getattr(side, request.pop("do"))(**request)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


if __name__ == "__main__":
    # What the package prints must not mix with the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    serve(Side(sys.argv[1]), sys.stdin.buffer, answers)
