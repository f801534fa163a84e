"""The terminal: names and messages are shown as they are, none is read as markup, and a reader that goes stops nothing.

Nothing else in pft_bench writes to it: `tests/test_terminal.py` holds that. `common.text` makes texts harmless.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import rich.console
import rich.progress
import rich.table
from rich.segment import Segment
from rich.text import Text

from .text import Lines, plain

UNWRAPPED = 10_000
"""Columns of a pipe or a file, where nothing is gained by breaking the lines of a table."""


def line(*pieces: str | tuple[str, str]) -> Text:
    """One line of pieces, each a text or a text with its style."""
    made = Text()
    for piece in pieces:
        text, style = piece if isinstance(piece, tuple) else (piece, "")
        made.append(plain(text), style or None)
    return made


class Console(rich.console.Console):
    """A terminal that shows texts as they are.

    No text is read as markup or as the name of an emoji, none is coloured by what it looks like, and what the
    terminal's encoding lacks is written out. A printed `str` is one line, whatever is in it, and is not wrapped, so
    that it can be searched and copied; styles are `style=` or `line`.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, width=width, quiet=quiet, markup=False, emoji=False, highlight=False)
        if width is None and not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNWRAPPED

    @classmethod
    def wide(cls, columns: int, *, quiet: bool = False) -> Console:
        """The terminal as it is; for a pipe or a file at least so many columns, where COLUMNS says how many it has."""
        made = cls(quiet=quiet)
        return made if made.is_terminal else cls(width=max(made.width, columns), quiet=quiet)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints; each `str` is shown as one line."""
        if all(isinstance(item, str | Text) for item in objects):
            options.setdefault("soft_wrap", True)
        super().print(*(plain(item) if isinstance(item, str) else item for item in objects), **options)

    def error(self, text: str) -> None:
        """`error:` and one line, or its `Lines`."""
        first, *others = text.split("\n") if isinstance(text, Lines) else [text]
        self.print(line(("error:", "bold red"), f" {first}"))
        for other in others:
            self.print(other)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """A line that says what is being done, while it is; call what comes to say something else."""
        with self.status(line(text), spinner=_spinner(self)) as status:
            yield lambda other: status.update(line(other))

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text inside of something else, such as a table's cell."""
        return super().render_str(_encodable(plain(text, lines=True), self.encoding), **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The last place where a character that a terminal obeys is seen, whatever it came in."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(_encodable(plain(segment.text, lines=True), self.encoding), segment.style)


def _encodable(text: str, encoding: str) -> str:
    if text.isascii():
        return text
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except (LookupError, UnicodeError):
        return text.encode("ascii", "backslashreplace").decode("ascii")


def _spinner(console: rich.console.Console) -> str:
    return "dots" if console.encoding.startswith("utf") else "line"


class Table(rich.table.Table):
    """A table whose texts are shown as they are, each on one line of its own unless it is too long.

    Its columns are those of `texts`, then those of `numbers`, which stand to the right.
    """

    def __init__(
        self,
        *texts: str,
        numbers: Iterable[str | Text] = (),
        title: str | None = None,
        caption: str | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("title_justify", "left")
        options.setdefault("caption_justify", "left")
        options.setdefault("header_style", "bold")
        super().__init__(
            title=None if title is None else line(title),
            caption=None if caption is None else line(caption),
            **options,
        )
        for name in texts:
            self.add_column(name)
        for header in numbers:
            self.add_column(header, justify="right")

    def add_column(self, header: str | Text = "", *more: Any, **options: Any) -> None:  # type: ignore[override]
        """As rich's; a `Text` may have several lines."""
        super().add_column(line(header) if isinstance(header, str) else header, *more, **options)

    def add_row(self, *cells: str | Text | None, **options: Any) -> None:  # type: ignore[override]
        """As rich's, for texts alone."""
        super().add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells), **options)


class Words(rich.progress.TextColumn):
    """The words of a progress bar, as they are."""

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format, markup=False)

    def render(self, task: rich.progress.Task) -> Text:
        """On one line."""
        return line(self.text_format.format(task=task))


class _Bar(rich.progress.Progress):
    """As rich's; one that is not shown writes nothing, as in all but older versions of rich."""

    def stop(self) -> None:
        """Stop showing it."""
        if not self.disable:
            super().stop()


def progress_bar(
    console: Console, *columns: rich.progress.ProgressColumn, spinner: bool = False, **options: Any
) -> rich.progress.Progress:
    """A bar of these columns, with a spinner in front where asked for."""
    first = [rich.progress.SpinnerColumn(_spinner(console))] if spinner else []
    return _Bar(*first, *columns, console=console, **options)


def counting_bar(console: Console, unit: str = "") -> rich.progress.Progress:
    """A bar that counts what is done, in `unit`, and is gone in the end; nothing where nobody looks at a terminal."""
    return progress_bar(
        console,
        Words("{task.description}"),
        rich.progress.BarColumn(),
        Words(f"{{task.completed}}/{{task.total}} {unit}".rstrip()),
        rich.progress.TimeElapsedColumn(),
        transient=True,
        disable=not console.is_terminal,
    )


class Outlet:
    """A standard stream whose reader may go, as `head` does: what is written from then on is dropped.

    The work goes on to its end. `error` is what the first write that failed ran into.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of it, or nothing and no error."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """One after the other."""
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        """Whatever is left, or nothing and no error."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    @property
    def lost(self) -> OSError | None:
        """Why something was lost though its reader was still there; None where nothing was."""
        return None if self.error is None or self.error.errno == errno.EPIPE else self.error

    def _drop(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            # The descriptor itself: what is in buffers, and what other processes say there, goes the same way.
            os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)


@contextmanager
def outlets() -> Iterator[tuple[Outlet | None, Outlet | None]]:
    """Standard output and error as `Outlet`s (None where one is closed), which write out what their encoding lacks."""
    before = sys.stdout, sys.stderr
    made: list[Outlet | None] = []
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        made.append(None if stream is None else Outlet(stream))
    sys.stdout, sys.stderr = made
    try:
        yield made[0], made[1]
    finally:
        for outlet in made:
            if outlet is not None:
                outlet.flush()
        sys.stdout, sys.stderr = before


__all__ = ["Console", "Outlet", "Table", "Text", "Words", "line", "outlets", "progress_bar"]
