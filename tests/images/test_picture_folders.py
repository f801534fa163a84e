"""One rule for which files of a folder are pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pft_bench.apps.images import list_pictures, pictures_left_out, walk_pictures
from pft_bench.apps.quality import find_datasets
from pft_bench.apps.train.photographs import picture_paths

PICTURES = ("a.png", "b.JPG", "c.tiff", "d.bmp", "deep/e.webp", "deep/er/f.jpeg")
OTHERS = (
    *("._a.png", ".hidden/g.png", "__MACOSX/a.png", "__MACOSX/._a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg"),
    *(
        "Thumbs.db",
        "notes.txt",
        "h.gif",
        "deep/.i.png",
        "$RECYCLE.BIN/j.png",
        ".DS_Store",
        "lost+found/k.png",
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*PICTURES, *OTHERS):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "folder.png").mkdir()
    return tmp_path / "in"


def names(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_what_systems_leave_is_passed_over_by_every_command(folder: Path) -> None:
    assert names(folder, walk_pictures(folder)) == list(PICTURES)
    assert names(folder, picture_paths(folder)) == list(PICTURES)
    assert names(folder, list_pictures(folder)) == ["a.png", "b.JPG", "c.tiff", "d.bmp"]
    assert [pair.name for pair in find_datasets(folder, 2)[0].pairs] == ["a", "b", "c", "d"]
    for path in list_pictures(folder):
        path.unlink()
    assert [found.name for found in find_datasets(folder, 2)] == ["deep"]


def test_what_is_no_file_is_named(folder: Path) -> None:
    """A link that leads nowhere stops nothing, and nothing waits for a pipe; neither is passed over in silence."""
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    odd = ["gone.png", "loop.png", "pipe.png"]
    assert not [path for path in walk_pictures(folder) if path.name in odd]
    expected = [
        "left out, of formats that are not read here: 1 (h.gif)",
        f"left out, as links that lead nowhere, pipes or devices: 3 ({', '.join(odd)})",
    ]
    assert pictures_left_out(folder) == expected
    assert list(find_datasets(folder, 2)[0].remarks) == expected


def test_a_hidden_folder_may_be_asked_for(folder: Path) -> None:
    assert names(folder, walk_pictures(folder / ".hidden")) == [".hidden/g.png"]


def test_links_are_followed_once(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "deep" / "self").symlink_to("self")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "l.png").touch()
    (folder / "z").symlink_to(elsewhere, target_is_directory=True)
    (folder / "y.png").symlink_to(elsewhere / "l.png")
    (folder / "broken.png").symlink_to(elsewhere / "nothing.png")
    assert names(folder, walk_pictures(folder)) == [*PICTURES, "y.png", "z/l.png"]


def test_what_is_written_is_not_read_again(folder: Path) -> None:
    assert names(folder, walk_pictures(folder, without=folder / "deep")) == list(PICTURES[:4])
    assert names(folder, walk_pictures(folder, without=folder)) == list(PICTURES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        with pytest.raises(PermissionError, match="deep"):
            walk_pictures(folder)
    finally:
        (folder / "deep").chmod(0o755)
