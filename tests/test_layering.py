"""Imports go one way (docs/architecture.md): what lies below knows nothing of what lies above."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsed import nodes, parsed

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pft_bench"

# Rooms that are split into parts of their own; everywhere else the room itself is the part.
SPLIT = {"common", "harness", "apps"}
# What users call; nothing below knows it.
TOOLS = {
    *("compare", "compat", "focus", "images", "insight", "quality", "selftest"),
    *("sweep", "train", "report", "maintain", "cli"),
}
ABOVE_OPS = {"check", "measure", "cases", "record", *TOOLS}
# part -> the parts it must not know.
FORBIDDEN: dict[str, set[str]] = {
    "backends": {"ops", "model", "problem", "schedule", *ABOVE_OPS},
    "ops": {"model", "problem", "schedule", *ABOVE_OPS},
    "model": {"problem", *ABOVE_OPS},
    "inputs": {"backends", "ops", "model", "schedule", "problem", *ABOVE_OPS},
    "problem": {"backends", "ops", "model", *ABOVE_OPS},
    "check": {"measure", "model", "cases", "record", *TOOLS},
    "measure": {"check", "cases", "record", "ops", "backends", "model", *TOOLS},
    "record": {"check", "cases", "ops", "backends", "model", *TOOLS},
    # the rows of quality and the verdicts of compare are data, as records are
    "report": {"cases", "check", "ops", "backends", "model", *TOOLS - {"report", "quality", "compare"}},
    "compare": TOOLS - {"compare"},
    "selftest": TOOLS - {"selftest", "compare"},
    "cases": TOOLS - {"images"},  # the input of a model run is a picture
    "images": {"backends", "problem", "schedule", "model", *ABOVE_OPS - {"images"}},
    "quality": {"backends", *TOOLS - {"quality", "images"}},
    "compat": {"model", "problem", "schedule", *ABOVE_OPS - {"compat"}},
    "focus": {"backends", "problem", "schedule", *ABOVE_OPS - {"focus"}},
    "sweep": {"ops", "backends", "model", *TOOLS - {"sweep"}},
    "train": {
        "backends",
        "problem",
        "schedule",
        "check",
        "measure",
        "cases",
        *TOOLS - {"train", "images"},
    },
    "systems": {"backends", "ops", "problem", "schedule", "check", "measure", "cases", "record", *TOOLS},
    "insight": TOOLS - {"insight", "images"},
    "kernels": {"ops", "model", "backends", *ABOVE_OPS},
    "maintain": {"cli"},
    "cli": {"maintain"},
    "terminal": {"backends", "ops", "model", "problem", "schedule", *ABOVE_OPS},
}
# Parts that import nothing of the project but themselves.
ALONE = {
    "stages",
    "schedule",
    "reference",
    "text",
    "drafts",
    "native",
    "container",
    "shortage",
    "messages",
    "processes",
    "entropy",
}
# What adapters may take from one another: nothing. Shared are reference/, base.py, and the launches of one kernel
# family that runs in two places (the same .cu files on a GPU and in the emulator).
SHARED_BY_BACKENDS = {"base", "_cuda_launch"}


@functools.cache
def sources() -> dict[str, Path]:
    """Dotted module name -> file, for everything that is imported as pft_bench."""
    found = {}
    folders = ((PACKAGE, "pft_bench"), (ROOT / "reference", "pft_bench.reference"))
    kernels = (ROOT / "kernels" / "triton", "pft_bench.kernels.triton")
    for folder, prefix in (*folders, kernels):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((prefix, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(module: str, path: Path, text: str | None = None) -> Iterator[tuple[str, int]]:
    """Every pft_bench module that `path` imports, at its top or inside a function, with its line."""
    is_package = path.name == "__init__.py"
    for node in nodes(path) if text is None else ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import stages` names modules, `from .stages import stage` what is in one: list both
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pft_bench":
                yield name, node.lineno


def part_of(module: str) -> str | None:
    """The part a module belongs to; None for the package and for a room that is split, which hold no code."""
    pieces = [piece for piece in module.split(".")[1:] if piece not in SPLIT]
    return pieces[0] if pieces else None


@functools.cache
def parts() -> set[str | None]:
    return {part_of(other) for other in sources()} - {None}


def violations(module: str, path: Path, text: str | None = None) -> list[str]:
    own = part_of(module)
    if own is None or own == "__main__":
        return []  # the package itself offers everybody's names
    found = []
    for name, line in imported(module, path, text):
        other = part_of(name)
        if other not in parts() or other == own:
            continue
        if own in ALONE or other in FORBIDDEN[own]:
            found.append(f"{path.name}:{line}: {own} must not import {other} ({name})")
    return found


def test_imports_go_one_way() -> None:
    assert [wrong for module, path in sources().items() for wrong in violations(module, path)] == []


def test_every_part_has_its_rule() -> None:
    assert parts() - {"__main__"} - ALONE <= set(FORBIDDEN), "a new part needs a line in FORBIDDEN"


def adapters() -> dict[str, Path]:
    return {
        module: path
        for module, path in sources().items()
        if part_of(module) == "backends"
        and module.count(".") == 2
        and module.split(".")[2] not in SHARED_BY_BACKENDS
    }


@pytest.mark.parametrize("module", adapters())
def test_backends_never_import_each_other(module: str) -> None:
    names = {other.split(".")[2] for other in adapters()}
    for name, line in imported(module, adapters()[module]):
        pieces = name.split(".")
        if part_of(name) == "backends" and len(pieces) > 2 and pieces[2] in names - {module.split(".")[2]}:
            pytest.fail(f"{module}:{line} imports {name}")


def test_registry_names_backends_without_importing_them() -> None:
    """A broken optional backend must hurt nobody: modules are imported when asked for."""
    for module in ("pft_bench.backends", "pft_bench.backends.base"):
        names = {name for name, _ in imported(module, sources()[module])}
        assert not names & set(adapters())


@pytest.mark.parametrize("module", [module for module in sources() if "reference" in module.split(".")[1:2]])
def test_reference_knows_only_torch_and_the_standard_library(module: str) -> None:
    allowed = {"torch", "math", "operator", "__future__", "collections", "dataclasses", "typing"}
    for node in nodes(sources()[module]):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in allowed


def test_main_command_does_not_import_matplotlib_before_it_plots() -> None:
    """`pft-bench flops` and `import pft_bench` should not pay for what only a report needs."""
    for module, path in sources().items():
        for node in parsed(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            assert not any(name.split(".")[0] in ("matplotlib", "skimage") for name in names), module


def test_one_module_draws() -> None:
    """Style, colours, links and bytes are the same everywhere because one module alone knows the library."""
    knowing = {
        module
        for module, path in sources().items()
        if re.search(r"(import|from) matplotlib|savefig", path.read_text())
    }
    assert knowing == {"pft_bench.report.canvas"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("pft_bench.ops.sparse", "from ..harness.check import check_layer"),
        ("pft_bench.ops.sparse", "def f():\n    from pft_bench.harness import measure"),
        ("pft_bench.ops.sparse", "import pft_bench.report.tables"),
        ("pft_bench.ops", "from .. import cli"),
        ("pft_bench.common.stages", "from ..backends import get"),
        ("pft_bench.reference.sparse", "from ..common import stages"),
        ("pft_bench.harness.measure.timer", "from ..record import Record"),
        ("pft_bench.report.tables", "if True:\n    from ..harness.cases import Settings"),
        ("pft_bench.backends.cpu", "from ..ops.validate import describe"),
    ],
)
def test_a_wrong_import_is_seen(module: str, text: str) -> None:
    assert violations(module, sources()[module], text)
