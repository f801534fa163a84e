"""Flags from outside: ours follow them, what cannot be taken back is refused, and build_info tells them.

A small project includes kernels/flags.cmake and kernels/cpu as the real one does. It is configured, and one library of
one file is built: the kernels' own command lines are asked for what they define, not run.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake")
pytestmark = pytest.mark.skipif(CMAKE is None, reason="no cmake on PATH; pip brings its own to a build")
X86 = platform.machine() in ("x86_64", "AMD64")

PROJECT = """
cmake_minimum_required(VERSION 3.24...3.31)
project(probe LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
include("@ROOT@/kernels/flags.cmake")
add_subdirectory("@ROOT@/kernels/cpu" cpu EXCLUDE_FROM_ALL)
add_library(probe MODULE probe.cpp)
file(WRITE ${CMAKE_BINARY_DIR}/told "${PFT_USER_FLAGS}|${PFT_BUILD_TYPE_FLAGS}|${PFT_USER_LINK_FLAGS}")
"""
# Volatile, so that the compiler cannot know the answers.
PROBE = """
extern "C" int is_nan(float x) { volatile float y = x; return y != y; }
extern "C" float swallowed(float big, float small) { return (big + small) - big; }
"""
# In a process of its own: what loading does to the arithmetic of one stays with it.
LOADED = """
import ctypes, sys
module = ctypes.CDLL(sys.argv[1])
module.swallowed.restype = ctypes.c_float
module.swallowed.argtypes = [ctypes.c_float, ctypes.c_float]
module.is_nan.argtypes = [ctypes.c_float]
print(sys.float_info.min / 2 > 0, module.is_nan(float("nan")), module.swallowed(2.0**30, 1.0))
"""


def configure(
    folder: Path, flags: Mapping[str, str], *options: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """CMake over the small project with `flags` in the environment; the result and the build folder."""
    assert CMAKE is not None
    folder.mkdir(exist_ok=True)
    (folder / "CMakeLists.txt").write_text(PROJECT.replace("@ROOT@", ROOT.as_posix()))
    (folder / "probe.cpp").write_text(PROBE)
    environment = {key: value for key, value in os.environ.items() if key not in ("CXXFLAGS", "LDFLAGS")}
    command = [CMAKE, "-S", folder, "-B", folder / "build", f"-DPython_EXECUTABLE={sys.executable}", *options]
    done = subprocess.run(command, env={**environment, **flags}, capture_output=True, text=True)
    return done, folder / "build"


def macros(build: Path) -> dict[str, set[str]]:
    """What the command line of each target defines, by the target's name; "pft_cpu" has the dispatcher."""
    found: dict[str, set[str]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = shlex.split(entry["command"])
        target = next(
            part
            for part in Path(entry.get("output") or command[command.index("-o") + 1]).parts
            if ".dir" in part
        )
        if target.removesuffix(".dir") in found:
            continue
        kept = [part for part in command[: command.index("-o")] if not part.startswith("-M")]
        done = subprocess.run(
            [*kept, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
        )
        found[target.removesuffix(".dir")] = {line.split()[1] for line in done.stdout.splitlines()}
    return found


FAST = (
    "-Ofast -ffast-math -fassociative-math -fno-signed-zeros -ffinite-math-only -funsafe-math-optimizations"
)
WIDE = "-march=native -mavx512f -mavx512vl -mavx2 -mfma -mbmi -mpopcnt -msse4.2 -mfpmath=387" if X86 else ""
BAD = {
    "in the environment": (
        {"CXXFLAGS": f"{FAST} {WIDE} -frounding-math", "LDFLAGS": "-ffast-math -Ofast"},
        (),
    ),
    "as definitions of CMake": (
        {},
        (
            f"-DCMAKE_CXX_FLAGS={WIDE} -freciprocal-math",
            f"-DCMAKE_CXX_FLAGS_RELEASE={FAST}",
            "-DCMAKE_MODULE_LINKER_FLAGS=-funsafe-math-optimizations -ffast-math",
            # Ninja has another order of a link's flags than make.
            *(("-G", "Ninja") if shutil.which("ninja") else ()),
        ),
    ),
}


@pytest.mark.parametrize(("flags", "options"), BAD.values(), ids=BAD.keys())
def test_ours_follow_the_users(tmp_path: Path, flags: dict[str, str], options: tuple[str, ...]) -> None:
    done, build = configure(tmp_path / "flags", flags, *options)
    assert done.returncode == 0, done.stderr
    told = (build / "told").read_text()
    given = " ".join(
        [*flags.values(), *(option.partition("=")[2] for option in options if option.startswith("-D"))]
    )
    assert set(given.split()) <= set(told.replace("|", " ").split())

    targets = macros(build)
    assert {"pft_cpu", "pft_cpu_scalar", "probe"} <= set(targets)
    for name, defined in targets.items():
        assert not defined & {"__FAST_MATH__", "__ASSOCIATIVE_MATH__", "__NO_SIGNED_ZEROS__"}, name
        assert ("__AVX512F__" in defined) == (name == "pft_cpu_avx512"), name
        assert ("__AVX2__" in defined) == (name in ("pft_cpu_avx2", "pft_cpu_avx512")), name
        if name in ("pft_cpu", "pft_cpu_scalar", "probe"):
            assert not defined & {"__SSE3__", "__FMA__", "__BMI__", "__POPCNT__"}, name

    subprocess.run([CMAKE, "--build", build, "--target", "probe"], check=True, capture_output=True)
    (module,) = build.glob("libprobe.*")
    loaded = subprocess.run([sys.executable, "-c", LOADED, module], capture_output=True, text=True)
    assert loaded.stdout.split() == ["True", "1", "0.0"], loaded.stderr


def test_what_no_flag_takes_back_is_refused_by_name(tmp_path: Path) -> None:
    done, _ = configure(tmp_path / "flags", {"CXXFLAGS": "-g -D__FAST_MATH__=1"})
    assert done.returncode != 0
    told = " ".join(done.stderr.split())
    assert "the flags '-g -D__FAST_MATH__=1 " in told
    assert "cannot be used: with them a NaN need not come out as a NaN" in told


@pytest.mark.parametrize(
    ("flags", "options", "named"),
    [
        ({"LDFLAGS": "crtfastmath.o"}, (), "crtfastmath"),
        ({}, ("-DCMAKE_CXX_STANDARD_LIBRARIES=-lm -ffast-math",), "-ffast-math"),
        ({}, ("-DCMAKE_CXX_STANDARD_LIBRARIES=-Ofast",), "-Ofast"),
    ],
)
def test_what_a_link_has_after_our_flags_is_refused(
    tmp_path: Path, flags: dict[str, str], options: tuple[str, ...], named: str
) -> None:
    if "LDFLAGS" in flags:  # whichever this compiler has: CMake tries it before it reads our files
        asked = ["c++", "-print-file-name=crtfastmath.o"]
        found = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(found):
            pytest.skip("this compiler has no crtfastmath.o")
        flags = {"LDFLAGS": f"-g {found}"}
    done, _ = configure(tmp_path / "flags", flags, *options)
    assert done.returncode != 0
    told = " ".join(done.stderr.split())
    assert (
        f"cannot be used: '{named}' switches denormal numbers off in every process that loads the module"
        in told
    )


def test_flags_that_change_no_result_go_on_working(tmp_path: Path) -> None:
    harmless = '-O0 -g -DNDEBUG -fsanitize=undefined -flto -fno-omit-frame-pointer -DNAME="a;b"'
    done, build = configure(tmp_path / "flags", {"CXXFLAGS": harmless}, "-DCMAKE_BUILD_TYPE=Debug")
    assert done.returncode == 0, done.stderr
    assert (build / "told").read_text() == f"{harmless}|-g|"
