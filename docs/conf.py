"""The site that `make docs` builds with Sphinx: the repository's own pages, docstrings, and the program's help.

The repository is the source folder, so that links between pages are the same here and where the files are read.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

import pft_bench
from pft_bench.cli.app import whole_program

ROOT = Path(__file__).resolve().parents[1]

project = "pft_bench"
author = "the pft_bench authors"
version = release = pft_bench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "examples/*.md",
    "kernels/**.md",
    "reference/*.md",
    "reports/*.md",
    "pft_bench/data/*.md",
]
exclude_patterns = [".*", "build*", "dist", "runs", "tests"]
smartquotes = False  # it would make one dash of the two of an option
html_theme = "furo"
html_title = "pft_bench"
autodoc_member_order = "bysource"
myst_heading_anchors = 4
linkcheck_ignore = [r"https://download\.pytorch\.org/.*"]


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Folders of records lead to their records, and the page of commands gets the program's own help."""
    page = ROOT / f"{docname}.md"
    source[0] = re.sub(r"\]\(([\w./-]+)\)", lambda link: _file_of(page, link), source[0])
    if docname == "docs/commands":
        command = whole_program()
        context = command.make_context("pft-bench", [], resilient_parsing=True)
        source[0] += get_docs_for_click(obj=command, ctx=context, name="pft-bench", title="Commands")


def _file_of(page: Path, link: re.Match[str]) -> str:
    folder = page.parent / link[1]
    kinds = "records.jsonl", "trials.jsonl", "comparison.json", "README.md"
    records = [name for name in kinds if (folder / name).is_file()]
    return f"]({link[1].rstrip('/')}/{records[0]})" if records else link[0]


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", fill_in)
