"""Errors that mean that memory did not suffice, from any library."""

from __future__ import annotations

import sys

# The CPU allocator of torch raises a plain RuntimeError; its text is all there is to tell it by.
_WORDS = ("can't allocate memory", "out of memory", "std::bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was what an operation lacked, on the CPU or a GPU."""
    torch = sys.modules.get("torch")  # nothing of it is met where it has not been loaded
    return isinstance(error, MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )
