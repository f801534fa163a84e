"""Habits of command lines: -h and --version, what is refused, what a name means, and advice that exists."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pft_bench
from pft_bench.apps.images import enlarge
from pft_bench.apps.quality import bicubic_row, read_rows
from pft_bench.cli.app import whole_program

Command = Callable[..., Any]
PACKAGE = Path(pft_bench.__file__).parent
ROOT = PACKAGE.parent
COMMANDS: dict[str, Any] = whole_program().commands


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_version(pft_bench_command: Command, command: str) -> None:
    given = [command] if command else []
    assert pft_bench_command(*given, "--version") == (0, f"pft-bench {pft_bench.__version__}\n", "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(pft_bench_command: Command, command: str) -> None:
    given = [command] if command else []
    short, long = pft_bench_command(*given, "-h"), pft_bench_command(*given, "--help")
    assert short.code == 0
    assert (short.out, short.err) == (long.out, "")
    words = re.sub(r"[\s│]+", "", short.out)
    for param in COMMANDS[command].params if command else ():
        for text in (
            *[name for name in param.opts if name.startswith("-")],
            getattr(param, "help", "") or "",
        ):
            # nothing of a help text is taken for markup
            assert re.sub(r"\s+", "", text).upper() in words.upper(), (param.name, text)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (name, "small_x2")
        for name, made in COMMANDS.items()
        if name != "systems" and "weights" in {param.name for param in made.params}
    ]  # that takes the weights of other networks
    + [("upscale", "a multiple of the window and one window more than OVERLAP at least")],
)
def test_help_names_the_shipped_weights_and_what_a_tile_may_be(command: str, said: str) -> None:
    assert said in " ".join(getattr(param, "help", None) or "" for param in COMMANDS[command].params)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("flops", "--sched", "garbage"), "--sched belongs to --audit"),
        (("flops", "--limits", "--preset", "light_x2", "--lr", "8x8"), "--preset belongs to --audit"),
        (("flops", "--audit", "--sched", "garbage"), "schedule"),
        (("attention", "{a}", "--weights", "small_x2", "--preset", "light_x4"), "--preset is the model of"),
        (("evaluate", "--data", "{in}", "--weights", "small_x2", "--rounds", 0, "--lr", "8x8"), "--lr is of"),
        (("evaluate", "--data", "{in}", "--weights", "small_x2", "--rounds", 0, "--budget", 3), "--budget is of"),
        (("run", "--no-isolate", "--timeout", 3), "--timeout needs a process for each case"),
        (("run", "--attention", "dense,pfa", "--level", "layer"), "--level must be model alone"),
        (("compare", "{in}", "{in}", "--sched", "dense", "--budget", 3), "--sched is of measuring now"),
        (("compare", "--backends", "dense,cpu", "--force"), "--force is of two recorded runs"),
        (("selftest", "--out", "{new}"), "--out belongs to --verdicts and --builds"),
        (("selftest", "--threads", 1), "--threads belongs to"),
        (("fit", "--out", "{new}"), "--out belongs to --measure"),
        (("systems", "--no-measure", "--rounds", 7, "--out", "{new}"), "--rounds is of measuring"),
        (("profile", "--bare", "--out", "{new}"), "--out is for what --bare leaves out"),
        (("upscale", "{a}", "{new}/b.png", "--weights", "small_x2", "--tile", 64, "--memory", "1GB"), "give one of"),
        (("upscale", "{a}", "{new}/b.png", "--weights", "small_x2", "--quality", 80), "--quality is that of JPEG"),
        (("upscale", "{a}/", "{new}.png", "--weights", "small_x2"), "where it ends in /, got the file {a}"),
        (("statistics", "{a}/", "--lr", "8x8"), "where it ends in /, got the file {a}"),
        (("upscale", "{a}", "-", "--weights", "small_x2"), "pictures do not go to standard output"),
        (("upscale", "", "{new}", "--weights", "small_x2"), "'IN': it must name a file or a folder, got an empty"),
        (("upscale", "{a}", "", "--weights", "small_x2"), "OUT must name a file or a folder, got an empty text"),
        (("upscale", "{in}", "{new}.png", "--weights", "small_x2"), "OUT must be a folder when IN is one"),
        (("upscale", "{a}", ".png", "--weights", "small_x2"), "a suffix alone"),
        (("upscale", "{a}", "{new}/.JPG", "--weights", "small_x2"), "a suffix alone"),
        (("upscale", "{a}", "{file}/", "--weights", "small_x2"), "OUT must be a folder where it ends in /"),
        (("upscale", "{pipe}", "{new}.png", "--weights", "small_x2"), "a device or a pipe"),
        (("upscale", "/dev/null", "{new}.png", "--weights", "small_x2"), "a device or a pipe"),
        (("attention", "{a}", "--out", "{a}", "--overwrite"), "--out must not be what is read"),
        (("attention", "{a}", "--out", "{link}", "--overwrite"), "--out must not be what is read"),
        (("attention", "{a}", "--out", "{new}.png/"), "it must be a file, got the folder"),
        (("attention", ""), "got an empty text"),
        (("attention", "{in}", "--out", "{new}.png"), "must be a file with a picture, got a folder, a pipe or"),
        (("attention", "{pipe}", "--out", "{new}.png"), "must be a file with a picture, got a folder, a pipe or"),
        (("attention", "{new}", "--out", "{new}.png"), "got {new}: there is no such file"),
        (("statistics", "{in}", "--lr", "8x8"), "must be a file with a picture, got a folder, a pipe or"),
        (("statistics", "{new}", "--lr", "8x8"), "the image must be a picture, got {new}: there is no such file"),
        (("run", "--image", "{pipe}", "--lr", "8x8"), "must be a file with a picture, got a folder, a pipe or"),
        (("run", "--list", "--plugin", "{exits}"), "SystemExit: 3"),
        (("run", "--list", "--plugin", "{file}"), "got '{file}': the name of a file must end in .py"),
        (("check", "--plugin", "{in}"), "got '{in}': that is a folder"),
        (("check", "--plugin", "{new}.py"), "got '{new}.py': there is no such file"),
        (("check", "--plugin", "no_such.module"), "got 'no_such.module': there is no such module or file"),
        (("run", "--sched", 1024, 256, 128), "a schedule has no spaces: --sched 1024,256,128"),
        (("statistics", "--out", "{in}"), "it must be a file, got the folder"),
        (("statistics", "{a}", "--out", "{a}"), "--out must not be what is read"),
        (("history", "{in}", "--plot", "{in}"), "it must be a file, got the folder"),
        (("compare", "{run}", "{run}", "--out", "{run}/records.jsonl"), "--out must not be what is read"),
        (("run", "--out", ""), "'--out': it must name"),
        (("run", "--weights", ""), "'--weights': it must name"),
        (("report", ""), "got an empty text"),
        *(((name, *more, "--out", "{file}"), "it must be a folder, got the file") for name, more in {
            "run": (), "crossover": (), "fit": ("--measure",), "selftest": ("--verdicts", 1), "systems": (),
            "profile": (), "evaluate": ("--weights", "small_x2", "--data", "{in}"), "train": ("--data", "{in}"),
        }.items()),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    pft_bench_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    places = {name: tmp_path / name for name in ("in", "new", "file", "pipe", "run")}
    places |= {"a": tmp_path / "in" / "a.png", "link": tmp_path / "link.png", "exits": tmp_path / "exits.py"}
    places["in"].mkdir()
    places["run"].mkdir()
    (places["run"] / "records.jsonl").write_text("")
    Image.new("RGB", (24, 24)).save(places["a"])
    places["file"].write_text("")
    places["link"].hardlink_to(places["a"])
    os.mkfifo(places["pipe"])
    places["exits"].write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the plug-in
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    ended = pft_bench_command(*(str(part).format(**places) for part in arguments))
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.startswith("error: ")
    assert said.format(**places) in ended.err
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


def test_a_slash_at_the_end_means_a_folder(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    for source, out in ((pictures / "0.png", "x.png/"), (pictures / "1.png", "v1.5/"), (pictures, "y.png/")):
        ended = pft_bench_command("upscale", source, f"{tmp_path / out}/", "--weights", weights)
        assert ended.code == 0, ended
        assert (tmp_path / out).is_dir()
    assert len(list((tmp_path / "y.png").iterdir())) == 4
    more = ("--format", "jpg", "--weights", weights)
    ended = pft_bench_command("upscale", pictures / "0.png", tmp_path / "a.jpeg", *more)
    assert ended.code == 0, ended


def test_links_in_a_circle_are_no_traceback(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for given in ((pictures, tmp_path / "circle"), (pictures / "0.png", tmp_path / "circle" / "a.png")):
        ended = pft_bench_command("upscale", *given, "--weights", weights)
        assert ended.code == 1, ended
        assert str(tmp_path / "circle") in ended.out


def test_odd_targets_are_named(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "file").write_text("")
    for target, said in (
        ("pipe.png", "Is a device or a pipe, not a file: {}"),
        ("null.png", "Is a device or a pipe, not a file: {}"),
        ("file/b.png", "Is a file, not a folder: {}"),
    ):
        path = tmp_path / target
        ended = pft_bench_command("upscale", pictures / "0.png", path, "--weights", weights, "--overwrite")
        named = path.parent if target.startswith("file") else path
        assert (ended.code, said.format(named) in ended.out) == (1, True), ended
        assert ".part" not in ended.out
    assert Path("/dev/null").is_char_device()


def interrupted_at_the_third(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ctrl-C comes while it is called for the third time."""
    calls = itertools.count(1)

    def stop(*given: Any, **more: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return function(*given, **more)

    return stop


def test_ctrl_c_tells_what_was_done(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pft_bench.cli.upscale.enlarge", interrupted_at_the_third(enlarge))
    ended = pft_bench_command("upscale", pictures, tmp_path / "out", "--weights", weights)
    assert (ended.code, ended.err) == (130, "")
    assert ended.out.splitlines()[-1] == "2 written, interrupted, 2 not done"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]


def test_ctrl_c_keeps_the_images_that_were_evaluated(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pft_bench.apps.quality.variants.bicubic_row", interrupted_at_the_third(bicubic_row))
    given = ("--weights", weights, "--data", pictures, "--rounds", 0, "--out", tmp_path / "out")
    ended = pft_bench_command("evaluate", *given)
    assert ended.code == 130
    assert ended.out.splitlines()[-1].endswith(f"are in {tmp_path / 'out' / 'quality.jsonl'}")
    assert len(read_rows(tmp_path / "out" / "quality.jsonl")) == 4


def test_a_folder_that_cannot_be_written_is_named(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that was given, not the lock in it."""
    plain_open = Path.open

    def read_only(self: Path, *given: Any, **more: Any) -> Any:
        if self.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return plain_open(self, *given, **more)

    monkeypatch.setattr(Path, "open", read_only)
    given = ("--weights", weights, "--data", pictures, "--rounds", 0, "--out", tmp_path / "out")
    ended = pft_bench_command("evaluate", *given)
    assert (ended.code, ended.err) == (2, f"error: Permission denied: {tmp_path / 'out'}\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 112. GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes\nwhere"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_much(*_: object) -> None:
        raise error

    monkeypatch.setattr("pft_bench.cli.doctor.environment", too_much)
    ended = pft_bench_command("doctor")
    said = str(error).partition("\n")[0]
    assert ended == (2, "", f"error: memory does not suffice: {said}\n")


def test_a_mistake_of_ours_is_not_taken_for_it(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("pft_bench.cli.doctor.environment", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        pft_bench_command("doctor")


def test_a_file_to_write_is_tried_before_the_work(
    pft_bench_command: Command, weights: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is made, as --out folders are; what cannot be written is known before anything is computed."""
    given = ("statistics", pictures / "0.png", "--weights", weights, "--lr", "8x8")
    assert pft_bench_command(*given, "--out", tmp_path / "new" / "a.csv").code == 0
    assert (tmp_path / "new" / "a.csv").is_file()
    ended = pft_bench_command(*given, "--out", pictures / "1.png" / "a.csv")
    assert ended == (2, "", f"error: Is a file, not a folder: {pictures / '1.png'}\n")
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr("pft_bench.cli.compare.compare_folders", lambda *_, **__: pytest.fail("it worked"))
    ended = pft_bench_command("compare", run, run, "--out", "/dev/null")
    assert ended == (2, "", "error: Is a device or a pipe, not a file: /dev/null\n")


def test_ctrl_c_anywhere_else(pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pft_bench.cli.doctor.environment", stop)
    assert pft_bench_command("doctor") == (130, "", "interrupted\n")


def test_ctrl_c_before_a_command_begins(pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pft_bench.cli.app._program_for", stop)
    assert pft_bench_command("doctor") == (130, "", "interrupted\n")


def test_backends_is_a_table_and_a_package() -> None:
    assert [row.name for row in pft_bench.backends()] == list(pft_bench.backends.names())
    from pft_bench.backends import backends, register

    assert pft_bench.backends.register is register
    assert pft_bench.backends() == backends()
    assert pft_bench.backends.base.get("cpu") is pft_bench.backends.get("cpu")


def texts() -> dict[str, str]:
    """Every text in the package, documentation apart, and what users read beside it; by where it stands."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = node.value
    return found


def test_advice_names_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"test", "lint"} <= targets
    wrong = []
    for where, text in texts().items():
        wrong += [(where, name) for name in re.findall(r"`make ([a-z-]+)", text) if name not in targets]
        for name, rest in re.findall(r"(?:`|^)pft-bench ([a-z]+)([^`|\n]*)", text, re.MULTILINE):
            if name not in COMMANDS:
                wrong.append((where, f"pft-bench {name}"))
                continue
            known = {
                option for param in COMMANDS[name].params for option in (*param.opts, *param.secondary_opts)
            }
            used = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest.partition("#")[0])
            wrong += [(where, f"{name} {option}") for option in used if option not in {*known, "--help"}]
        for path in re.findall(r"pft_bench(?:\.[a-z_]+)+(?=[`(])", text):
            wrong += [] if _exists(path) else [(where, path)]
    assert wrong == []


def _exists(path: str) -> bool:
    import importlib

    found: Any = pft_bench
    for name in path.split(".")[1:]:
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(f"{found.__name__}.{name}")
            except ImportError:
                return False
    return True
