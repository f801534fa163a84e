"""Every module that is run by `python -m` starts without a warning of Python's: its package has not imported it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from parsed import parsed

PACKAGE = Path(__file__).parent.parent / "pft_bench"
RUN_AS_FILES = {"pft_bench.common.processes", "pft_bench.harness.compare.worker"}
# One process loads what is slow to load; in forks of it Python looks for each program, as it does before it runs one.
FIND_ALL = """
import os, runpy, sys
import torch

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        runpy._get_module_details(name)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def programs() -> set[str]:
    """Modules that do something where they are run, and packages with a `__main__`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if any(_asks_whether_it_is_run(node) for node in parsed(path).body):
            found.add(".".join(part for part in parts if part != "__main__"))
    return found


def _asks_whether_it_is_run(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_no_package_imports_the_program_in_it() -> None:
    names = sorted(programs() - RUN_AS_FILES)
    assert {"pft_bench", "pft_bench.insight.counters.sass", "pft_bench.maintain.gpu"} <= {*names}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", FIND_ALL, *names],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes == dict.fromkeys(names, "0"), done.stderr
