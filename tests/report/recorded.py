"""Run folders for tests: a copy of a committed run, and what can be read out of a page."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "reports" / "data"
VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}


def committed(level: str) -> Path:
    """The first committed run that has records of this level."""
    for folder in sorted(DATA.iterdir()):
        if f'"level":"{level}"' in (folder / "records.jsonl").read_text():
            return folder
    raise LookupError(f"no committed run has level {level}")


def copy(level: str, to: Path, records: int = 12) -> Path:
    """A copy of its first records and their environment, without any report."""
    source = committed(level)
    to.mkdir(parents=True, exist_ok=True)
    lines = (source / "records.jsonl").read_text().splitlines(keepends=True)
    (to / "records.jsonl").write_text("".join(lines[:records]))
    shutil.copy(source / "environment.json", to)
    return to


def raw_records(folder: Path) -> dict[str, dict[str, Any]]:
    """case_id -> the record as JSON, read without the package."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return {found["case_id"]: found for found in map(json.loads, lines)}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        found = [self] if self.tag == tag else []
        return found + [other for child in self.children for other in child.all(tag)]

    def words(self) -> str:
        return " ".join([self.text, *(child.words() for child in self.children)])


class Page(HTMLParser):
    """A small tree of a page; unbalanced markup is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        assert self._open == [self.root], f"not closed: {self._open[-1].tag}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
