"""What the documentation points to exists: files, and headings within them. The README stays a page that is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for folder in ("", "docs", "kernels", "kernels/*", "reference", "reports", "examples")
    for page in ROOT.glob(f"{folder}/*.md" if folder else "*.md")
)

# The files of CONTRIBUTING's worked examples.
IMAGINED = {"pft_bench/backends/mine.py", "kernels/cpu/logsumexp.cpp"}


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them: lower case, spaces as hyphens, other signs gone."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    headings = (line.lstrip("#").strip() for line in lines if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert wrong == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_readme_and_site_lead_to_every_guide() -> None:
    readme, index = (ROOT / "README.md").read_text(), (ROOT / "docs" / "index.md").read_text()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert [name for name in pages if f"\n{name}\n" not in index] == []
    assert [name for name in pages - {"commands", "api"} if f"docs/{name}.md" not in readme] == []


def test_files_that_are_named_exist() -> None:
    named = (
        r"`((?:pft_bench|tests|kernels|bindings|reference|reports|docs|examples|\.ci|\.github)/[\w./-]*\w)`"
    )
    wrong = [
        (page.name, path)
        for page in PAGES
        for path in re.findall(named, page.read_text())
        if not (ROOT / path).exists() and path not in IMAGINED
    ]
    assert wrong == []
