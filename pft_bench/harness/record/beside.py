"""What lies beside the records of a run folder: its environments, its settings and its plan, each with a seal.

A seal is a digest that the writer adds. It shows that what is read is what was written; whoever changes a file on
purpose can make a new one.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...common.drafts import draft
from .parts import RecordError, seal

ENVIRONMENTS, SETTINGS, WRITTEN, PLAN = "environment.json", "settings.json", "files.json", "plan.json"
"""The files' names."""

LOCK_OF_FILES = ".lock-files"
"""Beside the list of files from its beginning."""


def _object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        RecordError: it is none; the message names the file and what it has to be.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(
            f"{path} must be {what} as JSON, got {path.stat().st_size} bytes: {error}"
        ) from None
    if not isinstance(found, dict):
        raise RecordError(f"{path} must be {what} as a JSON object, got {type(found).__name__}")
    return found


def _sealed(path: Path, what: str, name: str, kind: type) -> Any:
    """The one value of a file of this kind, which has a seal.

    Raises:
        RecordError: it is not the one that the seal was made of.
    """
    found = _object(path, what)
    value = found.get(name)
    if not isinstance(value, kind) or found.get("seal") != seal({name: value}):
        raise RecordError(f"{path} was changed after it was written: its seal is not that of its content")
    return value


def _write_whole(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    with draft(path) as made:
        made.write_text(json.dumps(values, indent=1) + "\n")


def known_environments(folder: Path | str) -> dict[str, Any]:
    """Fingerprint -> environment, of the folder's `environment.json`; empty without one.

    Raises:
        RecordError: the file is not what a run writes.
    """
    path = Path(folder) / ENVIRONMENTS
    known = _object(path, "environments by their fingerprints") if path.is_file() else {}
    if not all(isinstance(value, dict) for value in known.values()):
        raise RecordError(f"{path} must map fingerprints to environments")
    for environment in known.values():
        for name in ("cpu", "gpu", "git", "libraries", "now"):
            if environment.get(name) is not None and not isinstance(environment[name], dict):
                raise RecordError(
                    f"{path}: {name} of an environment must be an object, got {type(environment[name]).__name__}"
                )
    return known


def remember_environment(folder: Path | str, found: Mapping[str, Any]) -> str:
    """Add an environment to the folder's `environment.json` (by fingerprint) and return its fingerprint.

    A folder may have several, of shares on several machines: each record points at its own.
    """
    folder, name = Path(folder), str(found["fingerprint"])
    with (folder / ".lock-environment").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # shares of a sweep write it at the same time
        known = known_environments(folder)
        known.setdefault(name, {**found, "seal": seal(found)})
        _write_whole(folder / ENVIRONMENTS, known)
    return name


def known_settings(folder: Path | str) -> tuple[dict[str, str], bool] | None:
    """What the folder was begun with, and whether a seal says so; None where nobody wrote it down.

    Raises:
        RecordError: the file holds no settings, or not those that its seal was made of.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return None
    found = _object(path, "the settings of a run")
    sealed = found.pop("seal", None)
    if sealed is not None and sealed != seal(found):
        raise RecordError(
            f"{path} was changed after it was written: its seal is {sealed!r}, its content has {seal(found)!r}"
        )
    return {str(name): str(value) for name, value in found.items()}, sealed is not None


def remember_settings(folder: Path | str, now: Mapping[str, str], *, begin: bool) -> dict[str, str]:
    """The folder's settings. With `begin` they become those given; else only where there are none yet."""
    folder = Path(folder)
    with (folder / ".lock-settings").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # shares of a sweep come at the same time
        known = None if begin else known_settings(folder)
        if known is None:
            _write_whole(folder / SETTINGS, {**now, "seal": seal(now)})
            return dict(now)
    return known[0]


def known_plan(folder: Path | str) -> dict[str, str]:
    """Case id -> title of its group, of all that the folder is to hold; empty where nobody wrote it down.

    Raises:
        RecordError: the file is not what its seal was made of.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        return {}
    cases = _sealed(path, "the plan of a run", "cases", dict)
    return {str(case_id): str(title) for case_id, title in cases.items()}


def remember_plan(folder: Path | str, cases: Mapping[str, str], *, begin: bool) -> None:
    """Add cases (id -> title of their group) to what the folder is to hold; with `begin` it is to hold no others."""
    folder = Path(folder)
    with (folder / ".lock-plan").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # shares of a sweep come at the same time
        known = {**({} if begin else known_plan(folder)), **cases}
        if known:
            _write_whole(folder / PLAN, {"cases": known, "seal": seal({"cases": known})})
        elif begin:
            (folder / PLAN).unlink(missing_ok=True)


def remember_files(folder: Path | str, names: Iterable[str]) -> None:
    """Add to the list of files that were written to the folder, so that one that is deleted is missed."""
    folder = Path(folder)
    with (folder / LOCK_OF_FILES).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = known_files(folder, new=True) or ()
        listed = sorted({*before, *names})
        _write_whole(folder / WRITTEN, {"files": listed, "seal": seal({"files": listed})})


def known_files(folder: Path | str, *, new: bool = False) -> tuple[str, ...] | None:
    """The files that were written to the folder, by name; None where nobody wrote them down, which is right for a `new`
    list and for older versions.

    Raises:
        RecordError: the list is not the one that its seal was made of.
    """
    path = Path(folder) / WRITTEN
    if not path.is_file():
        if (Path(folder) / LOCK_OF_FILES).exists() and not new:
            raise RecordError(f"{path} is not there, but it was written")
        return None
    return tuple(map(str, _sealed(path, "the list of the files of a run", "files", list)))
