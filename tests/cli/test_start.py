"""The program answers at once: help, usage errors, completion and what only reads records load no PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pft_bench.cli.app import NAMES

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "reports" / "data"
RECORDED, TRIALS = DATA / "2026-11-22_light_x4_64x64", DATA / "2026-11-23_verdicts"
Steps = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """What each step of one fresh process ended with and had loaded, by its name."""
    run = tmp_path_factory.mktemp("start") / "run"
    run.mkdir()
    for name in ("records.jsonl", "environment.json"):
        shutil.copy(RECORDED / name, run)
    done = subprocess.run(
        [sys.executable, HERE / "starting.py", run, TRIALS],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {step.pop("name"): step for step in found}


def test_importing_the_package_loads_nothing(steps: Steps) -> None:
    assert steps["import pft_bench"]["loaded"] == []


@pytest.mark.parametrize("command", ["--help", "--version", "", *(f"{name} -h" for name in sorted(NAMES))])
def test_help_loads_nothing(steps: Steps, command: str) -> None:
    assert (steps[command]["code"], steps[command]["loaded"]) == (0 if command else 2, [])


def test_usage_errors_load_nothing(steps: Steps) -> None:
    names = list(steps)
    between = names[names.index("nosuch") : names.index("complete pft-bench ru")]
    assert len(between) == 21
    assert {name: (steps[name]["code"], steps[name]["loaded"]) for name in between} == dict.fromkeys(
        between, (2, [])
    )


def test_completion_loads_nothing(steps: Steps) -> None:
    for asked, answer in (("pft-bench ru", "run"), ("pft-bench run --sch", "--sched")):
        step = steps[f"complete {asked}"]
        assert (step["code"], step["said"].split(), step["loaded"]) == (0, [answer], [])


def test_what_reads_records_does_without_torch(steps: Steps) -> None:
    assert "geometric mean of B / A" in steps["compare"]["said"]
    assert "comparable steps changed" in steps["history"]["said"]
    assert "everything agrees with the raw samples" in steps["verify comparisons"]["said"]
    for name in ("verify comparisons", "compare", "history"):
        assert (steps[name]["code"], steps[name]["loaded"]) == (0, ["numpy"]), steps[name]
    assert steps["report"]["code"] == 0
    assert "report.html" in steps["report"]["said"]
    assert "torch" not in steps["report"]["loaded"]


def test_ctrl_c_while_loading_is_no_traceback(steps: Steps) -> None:
    """From the program's first import to that of PyTorch."""
    interrupted = {name: step for name, step in steps.items() if name.startswith("Ctrl-C")}
    assert len(interrupted) == 5
    for name, step in interrupted.items():
        assert step["reached"], f"{name}: nobody looked for it"
        assert (step["code"], "Traceback" in step["said"]) == (130, False), name


def test_all_that_the_package_offers_is_found(steps: Steps) -> None:
    step = steps["everything of pft_bench"]
    assert step["offered"].pop("nosuch") is False
    assert all(step["offered"].values()), step["offered"]
    assert {*step["offered"]} <= {*step["listed"]}
    assert not {"pandas", "matplotlib", "PIL", "skimage", "pyvips", "pft_bench.apps.train"} & (
        {*step["loaded"]} - {*steps["report"]["loaded"]}
    )


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_command_at_work_has_all_that_it_works_with(steps: Steps, name: str) -> None:
    """Here PyTorch was loaded first, so that the module was imported with everything at once."""
    expected = sorted(vars(import_module(f"pft_bench.cli.{name}")))
    assert steps[f"complete {name}"]["names"] == expected
