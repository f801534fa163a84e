"""The terminal: texts are shown as they are, by one console; a reader that goes stops nothing."""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pft_bench
from pft_bench.common.terminal import Console, Outlet, Table, Words, line, outlets, progress_bar
from pft_bench.common.text import Lines

PACKAGE = Path(pft_bench.__file__).parent
NASTY = "a[bold]b[/b] :smile: [link=http://x]c\x1b[31md\ne\u202ef\udce9"
SHOWN = "a[bold]b[/b] :smile: [link=http://x]c\\x1b[31md\\ne\\u202ef\\xe9"


class Screen(io.TextIOWrapper):
    """Standard output in memory, of any encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    @property
    def shown(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]

    def console(self, width: int = 300) -> Console:
        made = Console(width=width)
        made.file = self
        return made


@pytest.fixture(params=["utf-8", "ascii", "latin-1"])
def screen(request: pytest.FixtureRequest) -> Screen:
    return Screen(request.param)


def test_a_text_is_one_line_as_it_is(screen: Screen) -> None:
    screen.console().print(NASTY)
    screen.console().print(NASTY, style="bold")
    screen.console().print(line(("[x]", "red"), f" {NASTY}"))
    screen.console().print("no", "markup", "[red]")
    assert screen.shown.splitlines() == [SHOWN, SHOWN, f"[x] {SHOWN}", "no markup [red]"]


def test_a_long_text_is_not_wrapped(screen: Screen) -> None:
    screen.console(20).print("word " * 30 + "end")
    assert screen.shown == "word " * 30 + "end\n"


def test_a_table_is_not_wrapped_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for console in (Console(), Console.wide(120)):
        table = Table(box=None)
        table.add_column("case", overflow="fold")
        table.add_row("x" * 300)
        console.print(table)
        assert "x" * 300 in capsys.readouterr().out


def test_tables_show_texts_as_they_are(screen: Screen) -> None:
    table = Table(title=NASTY, caption=f"note {NASTY}")
    table.add_column(f"head {NASTY}")
    table.add_column("é猫")
    table.add_row(NASTY, line(("[styled]", "red")))
    screen.console().print(table)
    rows = screen.shown.splitlines()
    assert all(any(text in row for row in rows) for text in (f"head {SHOWN}", f"note {SHOWN}", "[styled]"))
    assert sum(SHOWN in row for row in rows) == 4
    # what the encoding lacks is written out before the widths are taken: every row ends where the others do
    assert len({len(row) for row in rows if "猫" not in row and len(row) > 100 and row[-1] in "┃│|"}) <= 1


def test_what_comes_as_foreign_text_cannot_act_either(screen: Screen) -> None:
    from rich.panel import Panel
    from rich.text import Text

    screen.console().print(Panel(Text("a\x1b[2Jb")))
    assert "\x1b" not in screen.shown
    assert "a\\x1b[2Jb" in screen.shown


def test_errors_have_the_lines_that_were_meant(screen: Screen) -> None:
    screen.console().error("got a\nb")
    screen.console().error(Lines.of("these differ:", "  a\nb"))
    assert screen.shown.splitlines() == ["error: got a\\nb", "error: these differ:", "  a\\nb"]


def test_bars_and_what_is_waited_for(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal: bars are drawn
    monkeypatch.setenv("TERM", "xterm")
    console = screen.console()
    assert console.is_terminal
    with progress_bar(console, Words("{task.description}"), spinner=True) as bar:
        bar.add_task(NASTY, total=1)
    with console.waiting(NASTY) as say:
        say(f"then {NASTY}")
    assert SHOWN in screen.shown
    assert f"then {SHOWN}" in screen.shown
    assert "\x1b[31m" not in screen.shown.replace("\\x1b[31m", "")


TOOLS = {
    # `python -m` of developers, and a line on standard error before a foreign program runs
    "pft_bench/insight/kernel_table.py",
    "pft_bench/maintain/sample_photographs.py",
    "pft_bench/compat/__main__.py",
    "pft_bench/compat/startup/sitecustomize.py",
}
HARMLESS = {"BarColumn", "TimeElapsedColumn", "TaskID", "box"}


def imported_from_rich(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "rich")


def strangers(path: Path) -> set[str]:
    """What a module uses to write to the terminal by itself."""
    tree = ast.parse(path.read_text())
    called = {
        f"typer.{node.func.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "typer"
    }
    called |= {
        "print"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    own = {"print", "typer.echo", "typer.secho", "typer.style", "typer.confirm", "typer.prompt"}
    return (set(imported_from_rich(tree)) - HARMLESS) | (called & own)


def test_nothing_else_writes_to_the_terminal() -> None:
    """Rich's own console, tables and bars read markup; `typer.echo` and its like know nothing of names."""
    paths = {path.relative_to(PACKAGE.parent).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert strangers(paths.pop("pft_bench/common/terminal.py"))
    for name in TOOLS:
        assert strangers(paths.pop(name)) == {"print"}
    assert {name: found for name, path in paths.items() if (found := strangers(path))} == {}


def gone(*, full: bool = False) -> io.TextIOWrapper:
    """A stream whose reader has closed it, or one on a full disk."""
    if full:
        return open("/dev/full", "w", encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.parametrize("full", [False, True], ids=["closed", "full"])
def test_what_cannot_be_written_is_dropped(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = gone(full=full)
    monkeypatch.setattr(sys, "stdout", stream)
    with outlets() as (said, _):
        assert isinstance(said, Outlet)
        for _ in range(3):
            Console().print("x" * 10_000)
            print("plain Python too", flush=True)
        assert said.error is not None
        assert said.error.errno == (errno.ENOSPC if full else errno.EPIPE)
        assert (said.lost is not None) == full
    assert sys.stdout is stream
    stream.close()  # what its buffer held is gone without an error, as at the end of the interpreter


def test_a_closed_stream_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with outlets() as (said, _):
        Console().print("nobody reads it")
    assert said is None


def test_a_real_pipe_to_head() -> None:
    """The whole way, to the end of the interpreter: quiet, and the exit code of the work."""
    program = "import sys; sys.argv = ['pft-bench', '--help']; from pft_bench.cli import main; main()"
    command = f'"{sys.executable}" -c "{program}" | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""
