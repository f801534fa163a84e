"""The tree in docs/architecture.md is the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DRAWN = ROOT / "docs" / "architecture.md"
# Besides rooms: what a package needs, and what is data.
FURNITURE = {"__init__.py", "__main__.py", "py.typed", "_cpu.pyi", "data", "__pycache__"}
TOP = {"kernels", "bindings", "reference", "pft_bench", "reports", "docs", "tests"}


def drawn_tree() -> dict[str, list[str]]:
    """Folder -> the names that the picture shows directly inside it; "" is the root."""
    picture = DRAWN.read_text().split("```")[1]
    tree: dict[str, list[str]] = {}
    path: list[str] = []
    for line in picture.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0].rstrip("/")
        path[depth:] = [name]
        tree.setdefault("/".join(path[:-1]), []).append(name)
    return tree


def rooms(folder: Path) -> set[str]:
    """Folders and modules directly inside a folder."""
    return {
        path.name
        for path in folder.iterdir()
        if path.name not in FURNITURE and (path.is_dir() or path.suffix == ".py")
    }


@pytest.mark.parametrize("folder", ["pft_bench", "pft_bench/harness", "pft_bench/apps"])
def test_every_room_is_drawn_and_every_drawn_room_exists(folder: str) -> None:
    assert set(drawn_tree()[folder]) == rooms(ROOT / folder)


def test_the_rest_of_what_is_drawn_exists() -> None:
    assert set(drawn_tree()[""]) == TOP
    for folder, names in drawn_tree().items():
        for name in names:
            path = ROOT / folder / name if name != "include/pft" else ROOT / folder / "include" / "pft"
            assert path.exists(), path


def test_the_package_has_at_most_twelve_rooms() -> None:
    assert len(rooms(ROOT / "pft_bench")) <= 12
