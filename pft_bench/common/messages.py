"""What libraries of this package say to users: programs print each in one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something that cannot be done, whose text says what to do; a base beside the built-in class that fits."""


class UserNote(UserWarning):
    """Something to know about a result, told once."""
