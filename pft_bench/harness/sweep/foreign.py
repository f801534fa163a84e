"""What a plug-in's code must leave as it is while it runs: the run folder, the files of the plug-ins, this package.

What is in the folder is put back. The files of plug-ins and of this package may be edited by whoever works on them, so
they stay as they are, and the rows that ran meanwhile have no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...common.text import counted
from ..cases import Group
from ..measure.environment import code_files
from ..measure.process_state import Find, marks
from ..record import Record, Status
from .held import HeldFolder, RunFiles
from .plugins import edited

SHOWN = 3
CHANGED_FOLDER = "changed the run folder"
"""What the guard around a call and this one both say."""


@dataclass
class Foreign:
    """What must stay; nothing is held where no plug-in was given."""

    folder: Path
    shard: str | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = HeldFolder(RunFiles(self.folder, self.shard))
        self._package = self._code() if self.plugins else {}

    @property
    def find(self) -> Find | None:
        """The files that a call must not touch."""
        return self.held.files if self.plugins else None

    def begin(self) -> None:
        """The folder is this run's own from now on, and right as it is."""
        if self.plugins:
            self.held.retake()

    def changed(self) -> list[str]:
        """What has changed since the last look, in words that follow "it"."""
        if not self.plugins:
            return []
        found = []
        if names := self.held.changed():
            found.append(f"{CHANGED_FOLDER}: {_some(names)} (put back)")
        if names := edited(self.plugins):
            found.append(f"changed the file of a plug-in: {_some(names)}")
        if names := self._edited_package():
            found.append(f"changed this package's own files: {_some(names)}")
        return found

    @staticmethod
    def _code() -> dict[str, object]:
        """The package's files by their names in it."""
        files = {str(path): str(name) for path, name in code_files()}
        return {files[path]: mark for path, mark in marks(files).items()}

    def _edited_package(self) -> list[str]:
        before, self._package = self._package, self._code()
        now = self._package
        return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))

    def require(self, when: str) -> None:
        """ValueError if anything has changed, which is put back: no row is to blame."""
        if found := self.changed():
            raise ValueError(f"--plugin {', '.join(self.plugins)}: {when} it {'; it '.join(found)}")

    def judged(self, group: Group, records: Sequence[Record]) -> tuple[list[Record], str]:
        """The group's records, without a time where they ran code that has changed what must stay; and what is to be
        said where no row of a plug-in can be to blame.
        """
        found = self.changed()
        if not found:
            return list(records), ""
        told = f"while it ran, it {'; it '.join(found)}"
        names = [name for name in group.cases if name in group.foreign()]
        cases = {group.cases[name].case_id for name in names}
        if not cases:
            return list(records), f"somebody has {' and '.join(found)} while {group.title} was measured"
        named = any(record.case_id in cases and CHANGED_FOLDER in (record.reason or "") for record in records)
        if named and all(CHANGED_FOLDER in text for text in found):
            return list(records), ""
        if len(names) > 1:
            told += f" (or another of {counted(len(names), 'contender')} of plug-ins did)"
        return [r.rejected(Status.FAILED, told) if r.case_id in cases else r for r in records], ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
