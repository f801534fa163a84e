"""What the code of a plug-in must not change while it runs: the run folder, the files of the plug-ins, this package.

Changed files of the run folder are restored. Changed files of plug-ins and of this package are not: their author may be
editing them during the run. The rows that ran meanwhile have no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...common.text import counted
from ..cases import Group
from ..measure.environment import code_files
from ..measure.process_state import Find, marks
from ..record import Record, Status, lock_folder, record_files
from .held import HeldFolder, RunFiles
from .plugins import edited

SHOWN = 3
CHANGED_FOLDER = "changed the run folder"
"""The words of the guard around a call and of this one for the same fault."""
IMPORTED = "before anything was measured"
"""When a change happened that is found before the first group runs."""


@dataclass
class Foreign:
    """Watches what plug-ins must not change; does nothing where no plug-in was given."""

    folder: Path
    shard: str | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = HeldFolder(RunFiles(self.folder, self.shard))
        self._package = self._code() if self.plugins else {}

    @property
    def find(self) -> Find | None:
        """Lists the files that a call must not change; None without plug-ins."""
        return self.held.files if self.plugins else None

    def begin(self) -> None:
        """Hold the folder, which this run has locked, as it is now."""
        if self.plugins:
            self.held.retake()

    def changed(self) -> list[str]:
        """What has changed since the last look, in words that follow "it"."""
        if not self.plugins:
            return []
        found = []
        if names := self.held.changed():
            found.append(_told_folder(names))
        if names := edited(self.plugins):
            found.append(f"changed the file of a plug-in: {_some(names)}")
        if names := self._edited_package():
            found.append(f"changed this package's own files: {_some(names)}")
        return found

    @staticmethod
    def _code() -> dict[str, object]:
        """Name of each file of this package -> its mark."""
        files = {str(path): str(name) for path, name in code_files()}
        return {files[path]: mark for path, mark in marks(files).items()}

    def _edited_package(self) -> list[str]:
        before, self._package = self._package, self._code()
        now = self._package
        return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))

    def require(self, when: str) -> None:
        """ValueError if anything has changed; for times at which no row runs that could be to blame."""
        if found := self.changed():
            raise _refused(self.plugins, when, found)

    def judged(self, group: Group, records: Sequence[Record]) -> tuple[list[Record], str]:
        """The group's records and a message. Rows of plug-ins lose their time if something changed while they ran.
        Where the group has no such row, the message tells of the change, else it is empty.
        """
        found = self.changed()
        if not found:
            return list(records), ""
        told = f"while it ran, it {'; it '.join(found)}"
        cases = {group.cases[name].case_id for name in group.foreign()}
        if not cases:
            return list(records), f"another program {' and '.join(found)} while {group.title} was measured"
        named = any(record.case_id in cases and CHANGED_FOLDER in (record.reason or "") for record in records)
        if named and all(CHANGED_FOLDER in text for text in found):
            return list(records), ""
        if len(cases) > 1:
            told += f" (or another of {counted(len(cases), 'contender')} of plug-ins did)"
        return [r.rejected(Status.FAILED, told) if r.case_id in cases else r for r in records], ""


@contextmanager
def held_folder(folder: Path, shard: str | None, plugins: Sequence[str]) -> Iterator[None]:
    """Import plug-ins, and ask what their backends can do, inside: if that changes files of a run that is to be
    continued, they are restored.

    Raises:
        ValueError: something has changed; the message names the files.
    """
    if not plugins or not record_files(folder):
        yield
        return
    with lock_folder(folder, shard):
        held = HeldFolder(RunFiles(folder, shard))
        held.retake()
        try:
            yield
        finally:
            names = held.changed()
            held.release()
        if names:
            raise _refused(plugins, IMPORTED, [_told_folder(names)])


def _refused(plugins: Iterable[str], when: str, found: Sequence[str]) -> ValueError:
    return ValueError(f"--plugin {', '.join(plugins)}: {when} it {'; it '.join(found)}")


def _told_folder(names: Sequence[str]) -> str:
    return f"{CHANGED_FOLDER}: {_some(names)} (put back)"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
