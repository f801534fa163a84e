"""Names and messages as people see them: nothing in them acts, and nothing is lost."""

from __future__ import annotations

import errno
import os

import pytest

from pft_bench.common.text import Lines, counted, file_name, in_short, parse_bytes, plain, show_bytes, told


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b.png", "a b.png"),
        ("grün 猫 😀.png", "grün 猫 😀.png"),
        ("[bold]x[/] :smile: \\n", "[bold]x[/] :smile: \\n"),
        (
            "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627",
            "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627",
        ),  # Persian needs it
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("Screenshot 9.41\u202fAM.png", "Screenshot 9.41\u202fAM.png"),
        ("x\x1b[31my", "x\\x1b[31my"),
        ("a\nb\rc\td\x00\x7f\x9b", "a\\nb\\rc\\td\\x00\\x7f\\x9b"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\u2066a\u2069\u2028\ufeff", "\\u2066a\\u2069\\u2028\\ufeff"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_to_be_seen_is_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(shown) == shown
    shown.encode()


def test_one_is_not_many() -> None:
    assert [counted(count, "window") for count in (0, 1, 2)] == ["0 windows", "1 window", "2 windows"]


def test_lines_stay_where_they_are_meant() -> None:
    assert plain("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert Lines.of("first", "a\nb") == "first\na\\nb"


def test_errors_in_one_line() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "out/a.png")
    assert told(full) == "No space left on device: out/a.png"
    assert told(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert told(ValueError()) == "ValueError"
    assert isinstance(told(ValueError(Lines.of("a", "b"))), Lines)
    assert not isinstance(told(ValueError("a\nb")), Lines)
    assert in_short(RuntimeError("what torch says\nand where")) == "what torch says"
    assert in_short(ValueError("got a\nb.png")) == "got a\nb.png"


def test_parts_of_files_names() -> None:
    assert file_name("cuda-emu_2.1+x") == "cuda-emu_2.1+x"
    odd = {file_name(text) for text in ("../a", "a/b", "a<b", "a>b", "..", "\udce9", "é")}
    assert len(odd) == 7
    assert all(name.isascii() and "/" not in name and not name.startswith(".") for name in odd)


def test_sizes_in_bytes_are_read_and_shown_by_one_rule() -> None:
    texts = ("8G", "8GB", "8Gi", "8 GiB", "500m", "123", "123B", "1.5kb", "2T")
    counts = (8 * 10**9, 8 * 10**9, 8 << 30, 8 << 30, 5 * 10**8, 123, 123, 1500, 2 * 10**12)
    assert tuple(parse_bytes(text, "--memory") for text in texts) == counts
    shown = ("0 B", "7 B", "999 B", "1 kB", "123 kB", "8.19 GB")
    assert tuple(show_bytes(count) for count in (0, 7, 999, 1000, 123_456, 8_199_999_999)) == shown
    needed = ("999 B", "1.01 kB", "1 MB", "4000 TB")
    assert tuple(show_bytes(count, up=True) for count in (999, 1001, 999_001, 4 * 10**15)) == needed
    assert all(parse_bytes(show_bytes(count, up=True), "") >= count for count in range(1, 10**7, 9973))
    for wrong in ("", "GB", "-1GB", "8XB", "8i", "1 2G", "nan", "inf", "0", "0.5", "9" * 400, "\u0661"):
        with pytest.raises(ValueError, match="--memory must be a size such as 500M"):
            parse_bytes(wrong, "--memory")
