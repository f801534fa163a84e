"""The tree in docs/architecture.md is the real one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from parsed import nodes, parsed

ROOT = Path(__file__).parent.parent
DRAWN = ROOT / "docs" / "architecture.md"
# Besides rooms: what a package needs, and what is data.
FURNITURE = {"__init__.py", "__main__.py", "py.typed", "data", "__pycache__"}
TOP = {"kernels", "bindings", "reference", "pft_bench", "reports", "docs", "examples", "tests"}


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


@pytest.mark.parametrize("folder", ["pft_bench", "pft_bench/common", "pft_bench/harness", "pft_bench/apps"])
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


def test_a_public_class_name_means_one_thing() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for folder in ("pft_bench", "reference", "kernels/triton"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in parsed(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: places for name, places in where.items() if len(places) > 1}


def _decides(node: ast.AST) -> bool:
    """Whether a statement or an expression gives out a verdict: returns, assigns or chooses one."""
    if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign):
        outcomes = [node.value]
    elif isinstance(node, ast.IfExp):
        outcomes = [node.body, node.orelse]
    else:
        return False
    return any(
        isinstance(outcome, ast.Attribute)
        and isinstance(outcome.value, ast.Name)
        and outcome.value.id == "Verdict"
        for outcome in outcomes
    )


def deciders(tree: Iterable[ast.AST]) -> list[int]:
    return [node.lineno for node in tree if _decides(node)]  # type: ignore[attr-defined]


def nodes_of(text: str) -> Iterable[ast.AST]:
    return ast.walk(ast.parse(text))


def test_one_module_decides_verdicts() -> None:
    folder = ROOT / "pft_bench"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if deciders(nodes(path))}
    # What the known answer of a planted comparison is, a trial looks up; it decides nothing.
    assert found - {"harness/selftest/known_answers.py"} == {"harness/measure/verdicts.py"}
    assert deciders(nodes_of("def f(x):\n    return Verdict.FASTER"))
    assert deciders(nodes_of("word = Verdict.SAME if x < 1 else None"))
    assert not deciders(nodes_of("found = word is Verdict.SAME"))


def names_of_record_files(tree: Iterable[ast.AST]) -> list[int]:
    """Lines with a string that is the name of a run folder's file, or a path to one."""
    names = ("records.jsonl", "environment.json", "settings.json", "plan.json")
    return [
        node.lineno
        for node in tree
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.rpartition("/")[2] in names
        and " " not in node.value
    ]


def test_one_package_opens_the_files_of_a_run_folder() -> None:
    folder = ROOT / "pft_bench"
    found = {
        path.relative_to(folder).parent.as_posix()
        for path in folder.rglob("*.py")
        if names_of_record_files(nodes(path))
    }
    assert found == {"harness/record"}
    assert names_of_record_files(nodes_of('open(folder / "records.jsonl")'))
    assert not names_of_record_files(nodes_of('"""Writes records.jsonl."""'))
