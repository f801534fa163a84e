"""An environment as a lent GPU machine has it: nothing but PyTorch and a handful of packages, and what those need."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = (
    *("torch", "triton", "numpy", "pytest", "rich", "typer", "pandas", "scikit-image"),
    *("pybind11", "scikit-build-core"),
)
OURS = {"pft_bench", "_editable_skbc_pft_bench"}
HIDING = """
import importlib.machinery
import sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
"""


def with_what_they_need(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require, by their canonical names."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for text in required:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(requirement.name))
    return found


def hidden_modules() -> set[str]:
    """Top-level modules of all other distributions that are installed here."""
    there = with_what_they_need(THERE)
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if module not in OURS and not {canonicalize_name(owner) for owner in owners} & there
    }


def hide(folder: Path) -> set[str]:
    """Write a sitecustomize.py that hides them; for PYTHONPATH. What is hidden."""
    hidden = hidden_modules()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    return hidden
