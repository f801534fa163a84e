"""Whose package is being tested."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")


def foreign_checkout(package: Path, tests: Path) -> Path | None:
    """The other checkout that `package` (its __init__.py) lies in; None if it is the one of `tests`, or a wheel's."""
    root = package.resolve().parents[1]
    other = root != tests.resolve().parent and (root / "tests" / "conftest.py").is_file()
    return root if other else None
