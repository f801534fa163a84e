"""Files appear whole or not at all, and an error names the file that was asked for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pft_bench.common.drafts import draft, make_folder, named, require_writable


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with draft(path) as made:
        assert made.parent == tmp_path
        assert made.suffix == ".png"
        assert made.name.startswith(".")
        made.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    with draft(path) as made:
        made.write_text("newer")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("newer", 0o640)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space")])
def test_what_goes_wrong_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with draft(path) as made:
            made.write_text("half")
            raise error

    with pytest.raises(type(error)) as told:
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(told.value, OSError):
        assert told.value.filename == str(path)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/.draft", None, str(tmp_path))

    with pytest.raises(OSError, match="No space") as told, named("mine.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert told.value.filename == "mine.csv"
    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(OSError, match="No space") as told:
        require_writable(tmp_path / "a.png")
    assert told.value.filename == str(tmp_path / "a.png")


def test_an_error_about_another_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, draft(tmp_path / "a.json"):
        (tmp_path / "other").read_text()
    assert told.value.filename == str(tmp_path / "other")


def test_odd_places(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("folder", "Is a folder"), ("pipe", "Is a device or a pipe")):
        for write in (draft(tmp_path / name).__enter__, lambda name=name: require_writable(tmp_path / name)):
            with pytest.raises(OSError, match=kind) as told:
                write()
            assert told.value.filename == str(tmp_path / name)
    for path in (tmp_path / "file" / "a.png", tmp_path / "none" / "a.png"):
        with pytest.raises(OSError, match=r"Not a directory|No such") as told, draft(path):
            pass
        assert told.value.filename == str(path)
    with pytest.raises(NotADirectoryError, match="Is a file, not a folder") as told:
        make_folder(tmp_path / "file" / "sub" / "sub")
    assert told.value.filename == str(tmp_path / "file")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="device"):
        draft("/dev/null").__enter__()
    assert Path("/dev/null").is_char_device()
    assert make_folder(tmp_path / "new" / "sub").is_dir()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "a.json")
    with draft(link) as made:
        made.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "a.json").read_text() == "new"
