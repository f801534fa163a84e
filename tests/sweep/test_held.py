"""A run folder that is held: a change of its files by others is reported and undone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pft_bench.harness.record import (
    lock_folder,
    remember_environment,
    remember_files,
    remember_plan,
    remember_settings,
)
from pft_bench.harness.record.folder import FolderLocked
from pft_bench.harness.sweep import HeldFolder, RunFiles

RECORDS = b"one\ntwo\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(RECORDS)
    remember_settings(folder, {"preset": "tiny"}, begin=True)
    remember_plan(folder, {"case": "a group"}, begin=True)
    remember_environment(folder, {"fingerprint": "a"})
    remember_files(folder, ["records.jsonl"])
    (folder / ".lock").write_text("1\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def same_times(path: Path) -> None:
    """Other content of the same length, with the old modification time."""
    found = path.stat()
    path.write_bytes(b"x" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "added": ("records.jsonl", lambda path: path.open("a").write("three\n")),
    "cut": ("records.jsonl", lambda path: os.truncate(path, 3)),
    "deleted": ("records.jsonl", Path.unlink),
    "a folder": ("records.jsonl", replace_by_folder),
    "as long as before": ("records.jsonl", same_times),
    "a link": ("records.jsonl", lambda path: path.rename(path.parent / "x") and path.symlink_to("x")),
    "a share": ("records-1of2.jsonl", Path.touch),
    "environment": ("environment.json", lambda path: path.write_text("{}")),
    "settings": ("settings.json", lambda path: path.write_text("{")),
    "plan": ("plan.json", Path.unlink),
    "files": ("files.json", lambda path: path.write_text('{"files": [], "seal": "x"}')),
    "lock": (".lock", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_change_of_a_file_is_reported_once_and_undone(
    folder: Path, name: str, damage: Callable[[Path], object]
) -> None:
    held = HeldFolder(RunFiles(folder))
    held.retake()
    before = contents(folder)
    assert held.changed() == []
    damage(folder / name)
    assert held.changed() == [name]
    after = contents(folder)
    after.pop("x", None)
    assert after == before
    assert held.changed() == []


def test_a_folder_that_is_gone_or_closed_comes_back(folder: Path) -> None:
    held = HeldFolder(RunFiles(folder))
    held.retake()
    before = {name: content for name, content in contents(folder).items() if ".lock-" not in name}
    shutil.rmtree(folder)
    assert "records.jsonl" in held.changed()
    assert contents(folder) == before
    mode = folder.stat().st_mode
    folder.chmod(0)
    held.changed()
    assert folder.stat().st_mode == mode


def moved(folder: Path) -> Path:
    return folder.rename(folder.parent / "elsewhere")


def link_to_nowhere(folder: Path) -> None:
    moved(folder)
    folder.symlink_to("nowhere")


GONE: dict[str, Callable[[Path], object]] = {
    "removed": lambda folder: shutil.rmtree(folder.resolve()),
    "moved": moved,
    "a file": lambda folder: moved(folder) and folder.write_text(""),
    "a link to nowhere": link_to_nowhere,
}


@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link"])
@pytest.mark.parametrize("damage", GONE.values(), ids=GONE)
def test_a_folder_that_is_replaced_comes_back_and_a_link_stays_one(
    folder: Path, damage: Callable[[Path], object], linked: bool
) -> None:
    if linked:
        target = folder.rename(folder.parent / "target")
        folder.symlink_to(target)
    held = HeldFolder(RunFiles(folder))
    held.retake()
    before = {name: content for name, content in contents(folder).items() if ".lock-" not in name}
    damage(folder)
    held.changed()
    assert folder.is_symlink() == linked
    assert contents(folder).items() >= before.items()
    assert held.changed() == []


def test_lines_of_the_run_itself_stay_and_earlier_lines_of_others_go(folder: Path) -> None:
    held = HeldFolder(RunFiles(folder))
    held.retake()
    (folder / "records.jsonl").open("a").write("forged\n")
    with held.writing(), (folder / "records.jsonl").open("a") as file:
        file.write("three\n")
    assert (folder / "records.jsonl").read_bytes() == RECORDS + b"three\n"
    assert held.changed() == ["records.jsonl"], "told by the next look"
    assert (folder / "records.jsonl").read_bytes() == RECORDS + b"three\n"


def test_nothing_is_held_before_the_folder_is_this_runs_own(folder: Path) -> None:
    held = HeldFolder(RunFiles(folder))
    (folder / "records.jsonl").unlink()
    assert held.changed() == []
    assert not (folder / "records.jsonl").exists()


def test_other_shares_may_add_and_a_report_may_be_made_meanwhile(folder: Path) -> None:
    held = HeldFolder(RunFiles(folder, "1of2"))
    held.retake()
    remember_environment(folder, {"fingerprint": "b"})
    remember_plan(folder, {"other": "a group"}, begin=False)
    remember_files(folder, ["report.html"])
    (folder / "records-2of2.jsonl").write_text("theirs\n")
    assert held.changed() == []
    (folder / "records-1of2.jsonl").write_text("forged\n")
    (folder / "records-1of3.jsonl").write_text("forged\n")
    known = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({"b": known["b"]}))
    assert held.changed() == ["environment.json", "records-1of2.jsonl", "records-1of3.jsonl"]
    assert set(json.loads((folder / "environment.json").read_text())) == {"a", "b"}
    assert (folder / "records-2of2.jsonl").read_text() == "theirs\n"


def test_settings_that_another_share_writes_first_stay_and_are_held_from_then_on(folder: Path) -> None:
    """Two shares begin at the same time, as under torchrun."""
    (folder / "settings.json").unlink()
    held, whole = HeldFolder(RunFiles(folder, "1of2")), HeldFolder(RunFiles(folder))
    held.retake()
    whole.retake()
    remember_settings(folder, {"preset": "tiny"}, begin=False)
    written = (folder / "settings.json").read_bytes()
    assert held.changed() == []
    (folder / "settings.json").write_text("{}")
    assert held.changed() == ["settings.json"]
    assert (folder / "settings.json").read_bytes() == written
    assert whole.changed() == ["settings.json"], "nobody else begins a run of one process"


@pytest.mark.parametrize("planted", [b"", b"nothing", b"[]", b'{"preset": "tiny", "seal": "x"}'])
def test_what_no_share_would_write_does_not_stay(folder: Path, planted: bytes) -> None:
    (folder / "settings.json").unlink()
    held = HeldFolder(RunFiles(folder, "1of2"))
    held.retake()
    (folder / "settings.json").write_bytes(planted)
    assert held.changed() == ["settings.json"]
    assert not (folder / "settings.json").exists()


def test_a_file_that_the_user_keeps_elsewhere_stays_a_link(folder: Path) -> None:
    kept = folder.parent / "kept.jsonl"
    (folder / "records.jsonl").rename(kept)
    (folder / "records.jsonl").symlink_to(kept)
    held = HeldFolder(RunFiles(folder))
    held.retake()
    (folder / "settings.json").unlink()
    assert held.changed() == ["settings.json"]
    assert (folder / "records.jsonl").readlink() == kept
    assert kept.read_bytes() == RECORDS


def test_a_lock_that_was_deleted_locks_again(folder: Path) -> None:
    with lock_folder(folder):
        held = HeldFolder(RunFiles(folder))
        held.retake()
        (folder / ".lock").unlink()
        assert held.changed() == [".lock"]
        with pytest.raises(FolderLocked), lock_folder(folder):
            pass
        held.release()
    with lock_folder(folder):
        pass
