"""Build the C++ with AddressSanitizer and UndefinedBehaviorSanitizer and run the kernel tests on that build.

`make sanitize` calls this. The package is assembled in build/sanitize as a wheel would install it, with the sanitized
module in the place of the usual one; the editable install is kept out of the way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
SITE = BUILD / "site"
TESTS = ["tests/kernels", "-k", "cpu and not threads and not subprocess"]

# An editable install answers `import pft_bench` before sys.path is looked at; without its finder the tree in SITE wins.
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
    """Compile the CPU module with both sanitizers."""
    import pybind11

    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(BUILD),
        "-DPFT_SANITIZE=address,undefined",
        "-DPFT_EMULATOR=OFF",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PFT_CUDA": "off"})
    subprocess.run(["cmake", "--build", str(BUILD), "--target", "_cpu", "-j2"], check=True, stdout=subprocess.DEVNULL)


def assemble() -> None:
    """Put the package together from symbolic links and the sanitized module."""
    shutil.rmtree(SITE, ignore_errors=True)
    package = SITE / "pft_bench"
    shutil.copytree(ROOT / "pft_bench", package, copy_function=os.symlink)
    shutil.copytree(ROOT / "reference", package / "reference", copy_function=os.symlink)
    shutil.copytree(ROOT / "kernels" / "triton", package / "kernels" / "triton", copy_function=os.symlink)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (built,) = BUILD.glob(f"**/_cpu{suffix}")
    shutil.copy(built, package)


def main() -> int:
    """Build, assemble, run; the exit code is pytest's."""
    print("== building with AddressSanitizer and UndefinedBehaviorSanitizer", flush=True)
    build()
    assemble()
    compiler = os.environ.get("CXX", "g++")
    library = subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter itself leaks by design
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    command = [sys.executable, "-c", RUNNER.format(site=str(SITE)), "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
