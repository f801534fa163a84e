"""Text for people: what a name holds is shown, whatever it is, and does nothing.

A file's name, a plug-in's or a message may hold what a terminal obeys (escape sequences, line ends, marks that turn the
direction of writing), bytes that are no text at all, or what a figure takes for a formula.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JOINERS = "\u200c\u200d"
"""Invisible, and part of how Persian, Hindi and emoji are written."""
_UNUSUAL = re.compile("[^ -~]")
_DANGEROUS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, invisible marks, halves of surrogate pairs, separators of lines."""


def plain(text: object, *, lines: bool = False) -> str:
    r"""`text` with every character that is not to be seen written out: `\n`, `\x1b`, `\u202e`.

    A byte that is no UTF-8, as the names of files may hold, becomes `\xe9`. With `lines`, line ends stay.
    """
    return _UNUSUAL.sub(lambda one: _written(one[0], lines), str(text))


def _written(character: str, lines: bool) -> str:
    if unicodedata.category(character) not in _DANGEROUS or character in _JOINERS:
        return character
    if character == "\n" and lines:
        return character
    return written_out(character)


def written_out(character: str) -> str:
    r"""The number of a character as Python writes it, such as `\u202e`."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file's name that is no text
        code -= 0xDC00
    number = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _SHORT.get(character, number)


class Lines(str):
    """A message of several lines, such as a list of what differs; each is shown as a line."""

    @classmethod
    def of(cls, *texts: object) -> Lines:
        """One line each, whatever is in it."""
        return cls("\n".join(map(plain, texts)))


def told(error: BaseException) -> str:
    """An error as one line; `Lines` where its message was made of several.

    An OSError names the file, without its number.
    """
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename,) if name is not None]
        return ": ".join((error.strerror, *names))
    if error.args and isinstance(error.args[0], Lines):
        return error.args[0]
    return str(error) or type(error).__name__


def in_short(error: BaseException) -> str:
    """`told`, and of what torch and other libraries say over several lines the first."""
    text = told(error)
    return text if isinstance(error, ValueError | OSError) else text.partition("\n")[0]


def counted(count: int, what: str) -> str:
    """`1 window`, `2 windows`."""
    return f"{count} {what}{'s' * (count != 1)}"


def file_name(text: str) -> str:
    """`text` as a part of a file's name.

    What is neither a letter, a digit nor one of `.+-_` becomes `_`, and a digest tells apart what became equal.
    """
    clean = re.sub(r"[^A-Za-z0-9.+_-]", "_", text).lstrip(".")
    return clean if clean == text else f"{clean}-{hashlib.sha256(repr(text).encode()).hexdigest()[:6]}"


def parse_bytes(text: str, name: str) -> int:
    """Bytes of a text like 8G or 8GB (10^9), 8Gi or 8GiB (2^30), 500M, or a plain number; `name` is the argument's."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(?:([kmgt])(i?))?b?", text.strip().lower())
    number, letter, binary = found.groups() if found else ("0", None, "")
    count = float(number) * (1024 if binary else 1000) ** " kmgt".index(letter or " ")
    if not 1 <= count < 2**63:
        raise ValueError(
            f"{name} must be a size such as 500M, 8G (10^9 bytes) or 8Gi (2^30 bytes), got {text!r}"
        )
    return int(count)


def show_bytes(count: int, *, up: bool = False) -> str:
    """Bytes as `parse_bytes` reads them, e.g. 1.25 GB: three digits, rounded down, or `up` for what is needed."""
    step = 10 ** max(0, len(str(count)) - 3)
    rounded = -(-count // step) * step if up else count // step * step
    power = min((len(str(rounded)) - 1) // 3, 4)
    return f"{rounded / 1000**power:g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
