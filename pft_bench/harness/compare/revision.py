"""Another commit of this repository, built beside this one: a git work tree with a Python environment of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from ...common.messages import UserError
from ...common.text import Lines
from .remote import Version


class BuildFailed(UserError, RuntimeError):
    """A commit that could not be checked out, built or imported."""


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-15:]
        raise BuildFailed(Lines.of(f"{' '.join(str(part) for part in command)} failed:", *told))
    return done.stdout.strip()


def repository() -> Path:
    """The git checkout that this package runs from; ValueError for an installed copy."""
    here = Path(__file__).resolve().parent
    try:
        root = Path(_run("git", "-C", here, "rev-parse", "--show-toplevel"))
    except (BuildFailed, FileNotFoundError):
        root = Path()
    if not (root / "pft_bench/harness/compare" / Path(__file__).name).is_file():
        raise ValueError("--baseline needs pft-bench installed from its git checkout (pip install -e .)")
    return root


def commit_of(revision: str, root: Path) -> str:
    """The full hash of a revision; ValueError if there is none."""
    try:
        return _run("git", "-C", root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except BuildFailed:
        raise ValueError(f"--baseline must name a commit of {root}, got {revision!r}") from None


def cache_folder() -> Path:
    """Where built commits are kept: XDG_CACHE_HOME or ~/.cache, under pft_bench/revisions."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user that has no home, as in containers
        raise ValueError(
            "--baseline keeps what it builds in ~/.cache, got a user without a home: set XDG_CACHE_HOME"
        ) from None
    return cache / "pft_bench" / "revisions"


def build(revision: str, root: Path | None = None, cache: Path | None = None) -> Version:
    """Check out and build a commit, or find it built before.

    Its environment holds that commit's package alone and borrows every library, PyTorch too, from the running one: what
    is compared is this repository's code. The folder is named by commit, Python and PyTorch, and counts as built only
    once the package has been imported from it.
    """
    root = root or repository()
    commit = commit_of(revision, root)
    key = hashlib.sha256(f"{sys.executable} {sys.version} {torch.__version__}".encode()).hexdigest()[:8]
    folder = (cache or cache_folder()) / f"{commit[:12]}-{key}"
    python, done = folder / "env" / "bin" / "python", folder / "built"
    label = f"{revision} ({commit[:10]})" if not commit.startswith(revision) else commit[:10]
    if done.is_file():
        return Version(label, python)
    _discard(folder, root)
    folder.mkdir(parents=True)
    tree = folder / "tree"
    _run("git", "-C", root, "worktree", "add", "--detach", "--force", tree, commit)
    _run(sys.executable, "-m", "venv", folder / "env")
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # Searched after the environment's own packages; .pth files inside it (editable installs) are not read.
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    install(tree, python, folder / "build")
    found = Path(_run(python, "-P", "-c", "import pft_bench; print(pft_bench.__file__)", cwd=folder))
    if not found.is_relative_to(folder):
        raise BuildFailed(f"{label} was built in {folder}, but its Python imports {found}")
    done.touch()
    return Version(label, python)


def install(tree: Path, python: Path, build_folder: Path) -> None:
    """Build the tree's package and install it, without its dependencies."""
    _run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--config-settings=cmake.define.PFT_EMULATOR=OFF", f"--config-settings=build-dir={build_folder}", tree,
    )  # fmt: skip


def _discard(folder: Path, root: Path) -> None:
    """Remove a build that was interrupted."""
    if not folder.exists():
        return
    shutil.rmtree(folder)
    _run("git", "-C", root, "worktree", "prune")
