"""make where the clone is not clean: odd characters in its path, an environment of another folder, no git.

What is installed, linted or measured is a stub's: it writes down its command line and where it was called.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checkout import foreign_checkout

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    ".ci",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "CMakeLists.txt",
    "kernels",
    "bindings",
    "reference",
)
INIT = "pft_bench/__init__.py"
ODD = 'a b $HOME it\'s (é) & "c"'
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")

# Passes the project's own scripts on to the real Python, without its site-packages: nothing is installed here.
STUB = f"""#!/bin/sh
case "$1 $2" in
  "-I .ci/"*) exec '{sys.executable}' -S "$@" ;;
  *"print(sys.executable)"*) echo "$PWD/.venv/bin/python" ;;
  *as_uri*) echo "file:///page" ;;
  *)
    case "$*" in
      *" -r /dev/stdin") echo "$PWD| $* $(tr '\\n' ' ')" ;;
      *) echo "$PWD| $*" ;;
    esac >> "$STUB_LOG" ;;
esac
"""


def tree(folder: Path) -> Path:
    """The files that the Makefile touches, in `folder`."""
    folder.mkdir(parents=True)
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    (folder / "pft_bench").mkdir()
    (folder / "pft_bench" / "__init__.py").write_text("")
    return folder


def stub(folder: Path, *stamps: str) -> None:
    """An environment whose Python is the stub, set up already for `stamps`."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    for name in stamps:
        (folder / ".venv" / name).touch()


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "VENV"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**environment, "STUB_LOG": str(folder / "log"), **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tree(tmp_path_factory.mktemp("odd") / ODD)
    stub(folder, ".bench", ".test", ".dev")
    return folder


def called(folder: Path) -> list[str]:
    """Command lines of the stub since the last time, each with the folder it was called in."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_lint_under_a_path_of_odd_characters(odd: Path) -> None:
    done = make(odd, "lint")
    assert done.returncode == 0, done.stderr
    lines = called(odd)
    assert f"{odd}| -m ruff check ." in lines
    assert f"{odd}/build/mypy| -m mypy -p pft_bench --config-file {odd}/pyproject.toml" in lines
    assert "kernels/cpu/sddmm.cpp" in lines[-1]
    assert "CMakeLists.txt" not in lines[-1]
    assert ".cmake" not in lines[-1]
    for name in ("__init__.py", "reference/__init__.py", "kernels/triton/config.py"):
        assert (odd / "build" / "mypy" / "pft_bench" / name).resolve().is_file()


COMMANDS = {
    "bench": "-m pft_bench run --sched 1024,256,128",
    "test": "-m pytest -m alone",
    "sanitize": "tests/sanitized.py",
    "microbench": "-m pytest tests/benchmarks --benchmark-only",
    "machine-peaks": "-m pft_bench.maintain.machine_peaks --out x y",
    "small-model": "-m pft_bench train --data build/photographs/train --out runs/x y",
    "figures": "-m pft_bench attention build/photographs/held_out/chelsea.png",
    "quality": "-m pft_bench evaluate --weights small_x2",
    "counters": "-m pft_bench.insight.counters.report",
    "counters-gates": "-m pft_bench.insight.counters.report --gates",
    "counters-sass": "-m pft_bench.insight.counters.sass",
    "wheel": "-m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w dist",
    "kernel-report": "-m pft_bench.insight.kernel_table",
    "systems": "-m pip --disable-pip-version-check install -q --no-deps spandrel",
    "systems-report": "-m pft_bench.maintain.systems_page",
}


@pytest.mark.parametrize(("target", "command"), COMMANDS.items(), ids=COMMANDS.keys())
def test_every_target_under_a_path_of_odd_characters(odd: Path, target: str, command: str) -> None:
    done = make(odd, target, "PEAKS_OUT=x y", "SMALL_MODEL_OUT=runs/x y")
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(f"{odd}| {command}") for line in called(odd))


def test_the_other_targets_can_be_read_and_none_is_forgotten(odd: Path) -> None:
    listed = {line.split()[0] for line in make(odd, "help").stdout.splitlines()}
    others = {"help", "lint", "docs", "docs-links", "report-screenshot", "gpu-test", "clean"}
    assert listed == {*COMMANDS, *others}
    for target in others:
        assert make(odd, "-n", target).returncode == 0, target


def test_set_up_under_a_path_of_odd_characters_installs_here_and_nowhere_else(tmp_path: Path) -> None:
    folder = tree(tmp_path / ODD)
    stub(folder)
    python = folder / ".venv" / "bin" / "python"
    told = 'echo "$PIP_USER|$PIP_TARGET|$PIP_PREFIX|$PYTHONPATH|$PYTHONHOME|$PYTHONDONTWRITEBYTECODE" >> "$STUB_LOG"\n'
    python.write_text(python.read_text().replace("case", told + "case", 1))
    elsewhere = {"PIP_USER": "1", "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PYTHONPATH": "/q"}
    done = make(folder, ".venv/.dev", **elsewhere, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    lines = called(folder)
    install = f"{folder}| -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt"
    build = f"{install} --no-build-isolation --no-deps -e . --config-settings=cmake.define.PFT_EMULATOR"
    assert f"{build}=ON" in lines
    (packages,) = (line for line in lines if line.startswith(f"{install} -r /dev/stdin"))
    pyproject = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    extras = pyproject["optional-dependencies"]
    wanted = {
        *pyproject["dependencies"],
        *(line for name in ("dev", "test", "docs", "triton") for line in extras[name]),
    }
    assert {line for line in wanted if not line.startswith("pft-bench[") and line not in packages} == set()
    assert {line for line in lines if "| -m" not in line} == {"0|||||"}, (
        "what sends pip elsewhere is not passed on"
    )
    assert all((folder / ".venv" / name).is_file() for name in (".dev", ".test", ".bench"))
    assert make(folder, ".venv/.dev").returncode == 0
    assert not [line for line in called(folder) if " -m pip " in line], "installed once"
    (folder / ".venv" / ".bench").unlink()
    assert make(folder, ".venv/.bench").returncode == 0
    assert f"{build}=OFF" in called(folder), "the next set-up for tests says ON again"


def test_an_environment_folder_with_a_space_is_refused(odd: Path) -> None:
    done = make(odd, "help", "VENV=a b")
    assert done.returncode == 2
    assert "VENV must be a folder without spaces in its path, got 'a b'" in done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with an environment that runs its pft_bench, as an editable install has it."""
    folder = tree(tmp_path_factory.mktemp("built") / "clone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (site,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (site / "editable.pth").write_text(f"{folder}\n")
    for name in ("bench", "test", "dev"):
        (folder / ".venv" / f".{name}").touch()
    return folder


def test_a_clone_runs_its_own_environment(built: Path) -> None:
    done = make(built, "-o", "nothing", ".venv/.bench")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
@pytest.mark.parametrize("target", ["bench", "test", "lint"])
def test_a_clone_copied_with_its_environment_does_not_run_the_original(
    built: Path, tmp_path: Path, target: str, moved: bool
) -> None:
    copy = tmp_path / "copy of it"
    shutil.copytree(built, copy, symlinks=True)
    (site,) = (copy / ".venv" / "lib").glob("python*/site-packages")
    original = tmp_path / "gone" if moved else built
    # The finder of an editable install: it names its files without looking whether they are there.
    (site / "finder.py").write_text(
        "import importlib.util, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pft_bench':\n"
        f"            return importlib.util.spec_from_file_location(name, {str(original / INIT)!r})\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    (site / "editable.pth").write_text("import finder\n")
    done = make(copy, target)
    assert done.returncode == 2
    assert f"runs the pft_bench in {original}, not the one here" in done.stderr
    assert "`make clean`" in done.stderr
    assert done.stdout.splitlines() == []


def test_the_tests_of_a_copy_do_not_test_the_original(tmp_path: Path) -> None:
    package = Path("pft_bench/__init__.py")
    for name in ("original", "copy"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "tests" / "conftest.py").touch()
    tests, site = tmp_path / "copy" / "tests", tmp_path / "copy" / ".venv" / "lib" / "site-packages"
    assert foreign_checkout(tmp_path / "original" / package, tests) == tmp_path / "original"
    assert foreign_checkout(tmp_path / "copy" / package, tests) is None
    assert foreign_checkout(site / package, tests) is None, "a wheel is tested wherever it is"


def test_an_environment_shared_by_two_clones_serves_the_first(built: Path, tmp_path: Path) -> None:
    other = tree(tmp_path / "other")
    done = make(other, "bench", f"VENV={built}/.venv")
    assert done.returncode == 2
    assert f"runs the pft_bench in {built}, not the one here; name another with VENV=FOLDER" in done.stderr


def test_an_environment_without_its_python_is_made_anew_and_no_other_folder_is_cleared(
    tmp_path: Path,
) -> None:
    folder = tree(tmp_path / "clone")
    python = tmp_path / "python"  # as `python3 -m venv`: writes down what it is asked for
    python.write_text(f'#!/bin/sh\ncase "$1" in -c) ;; *) echo "$*" >> "{folder}/log"; exit 1 ;; esac\n')
    python.chmod(0o755)
    (folder / ".venv").mkdir()
    make(folder, ".venv/bin/python", f"PYTHON={python}")
    (folder / ".venv" / "pyvenv.cfg").touch()
    make(folder, ".venv/bin/python", f"PYTHON={python}")
    assert [re.sub(" +", " ", line) for line in called(folder)] == ["-m venv .venv", "-m venv --clear .venv"]


def test_the_sdist_leaves_out_nothing_that_a_test_names() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for excluded in pyproject["tool"]["scikit-build"]["sdist"]["exclude"]:
        assert f'"{excluded.strip("/")}' not in tests, f"{excluded} is read by a test"


@pytest.mark.skipif(os.environ.get("PFT_SET_UP") != "test", reason="not set up by make test")
def test_what_make_test_has_set_up_can_run_every_test() -> None:
    """Where the emulator is missing, tests of the CUDA kernels are skipped, which nobody would notice."""
    for name in ("_cpu", "_cuda_emu", "_cuda_count"):
        assert importlib.util.find_spec(f"pft_bench.{name}") is not None, name
