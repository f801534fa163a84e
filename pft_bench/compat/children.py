"""The processes that a script starts: workers of multiprocessing by any method, and other Python scripts.

A forked process is a copy and has everything. One that starts anew finds `startup/sitecustomize.py` by PYTHONPATH, and
that comes back here as soon as torch has been imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from .fairscale import provide_fairscale
from .install import install
from .no_gpu import stay_on_cpu

VARIABLE = "PFT_BENCH_COMPAT"
"""Environment variable that tells such a process the backend and whether it stays on the CPU."""
STARTUP = Path(__file__).parent / "startup"


def bring_children(backend: str, on_cpu: bool) -> None:
    """Let every Python process that starts from here on do what this one does."""
    paths = [str(STARTUP), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ[VARIABLE] = f"{backend} {'cpu' if on_cpu else 'any'}"


def go_on() -> None:
    """In such a process: the same backend and the same device."""
    backend, _, device = os.environ.get(VARIABLE, "auto any").partition(" ")
    if device == "cpu":
        stay_on_cpu()
    install(backend)
    provide_fairscale()
