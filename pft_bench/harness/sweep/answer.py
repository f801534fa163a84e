"""The answer of a worker, in memory that it shares with its supervisor, which reads it after the worker has ended.

Foreign code ran in the worker, so the answer is read with care: it must carry the token that the supervisor drew for
the job, and may hold nothing but plain data and objects of this project's classes. Code that writes an answer without
knowing the token is found out; code that searches the memory of the worker for the token is not.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

PLAIN = frozenset(
    {
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "set",
        "str",
        "tuple",
    }
)
"""Built-in classes that answers may be made of."""


class ForgedAnswer(Exception):
    """An answer that the harness did not write."""


class _Reader(pickle.Unpickler):
    """Refuses classes that are neither plain data nor this project's, because unpickling may call any function."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, if an answer may hold one."""
        if module == "builtins" and name in PLAIN:
            return super().find_class(module, name)
        if module.startswith("pft_bench."):
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:  # not one that the module imports
                return found
        raise ForgedAnswer(f"it holds {module}.{name}")


def leave_answer(descriptor: int, token: bytes, value: object) -> None:
    """Write what the call returned over the earlier content."""
    data = token + _dumps(value)
    _truncate(descriptor, 0)
    at = 0
    while at < len(data):
        at += _pwrite(descriptor, data[at:], at)


def clear_answer(descriptor: int) -> None:
    """Remove the last answer, before a job."""
    os.ftruncate(descriptor, 0)


def read_answer(descriptor: int, token: bytes) -> Any:
    """What the call returned.

    Raises:
        ForgedAnswer: what is there was not written by `leave_answer` for this job.
        EOFError: nothing is there.
    """
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    if not data:
        raise EOFError("no answer")
    if not data.startswith(token):
        raise ForgedAnswer("it does not carry the token of its job")
    try:
        return _Reader(io.BytesIO(data[len(token) :])).load()
    except ForgedAnswer:
        raise
    except Exception as error:
        raise ForgedAnswer(f"{type(error).__name__}: {error}") from error


_dumps, _pwrite, _truncate = pickle.dumps, os.pwrite, os.ftruncate
"""This module's own: the names may have been replaced."""
