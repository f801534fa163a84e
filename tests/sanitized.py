"""Build the C++ with AddressSanitizer and UndefinedBehaviorSanitizer and run the kernel tests on that build.

`make sanitize` calls this. A wheel with the sanitized module is unpacked to build/sanitize/site and tested there; the
editable install is kept out of the way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
SITE = BUILD / "site"
# Without those that start a Python of their own, which would not be this one.
TESTS = [
    "tests/kernels/test_cpu_sparse.py",
    "tests/kernels/test_cpu_attention.py",
    "tests/kernels/test_cpu_depthwise.py",
    "tests/kernels/test_cpu_module.py",
    "tests/measure/test_identity.py",
    "-k",
    "not instruction_set and not widest and not openmp",
]

# An editable install answers `import pft_bench` before sys.path is looked at; without its finder the wheel wins.
RUNNER = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower()]
sys.path.insert(0, {site!r})
import pft_bench._cpu
assert pft_bench._cpu.__file__.startswith({site!r}), pft_bench._cpu.__file__
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def build() -> None:
    """Make a wheel whose compiled module has both sanitizers, and unpack it."""
    options = [
        "cmake.define.PFT_SANITIZE=address,undefined",
        "cmake.define.PFT_EMULATOR=OFF",
        "cmake.build-type=RelWithDebInfo",
        # the kernels have -O3 of their own; the bindings take a third of the time that they take with -O2 -g
        "cmake.define.CMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DNDEBUG",
        f"build-dir={BUILD / 'cmake'}",
    ]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(BUILD), str(ROOT)]
    command += [f"--config-settings={option}" for option in options]
    shutil.rmtree(SITE, ignore_errors=True)
    for old in BUILD.glob("*.whl"):
        old.unlink()
    subprocess.run(command, check=True, env={**os.environ, "PFT_CUDA": "off"})
    (wheel,) = BUILD.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(SITE)


def main() -> int:
    """Build, unpack, run; the exit code is pytest's."""
    print("== building with AddressSanitizer and UndefinedBehaviorSanitizer", flush=True)
    build()
    compiler = os.environ.get("CXX", "g++")
    # libstdc++ too: the sanitizer looks up its __cxa_throw at start, before any module has brought it in
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter itself leaks by design
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    command = [sys.executable, "-c", RUNNER.format(site=str(SITE)), "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
