"""Scripts that say "cuda" on a machine without a GPU: their tensors stay on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .cuda import cuda_patches
from .devices import Patch, device_patches

_ACTIVE = ExitStack()
"""What takes back the patches of `stay_on_cpu`; nothing does."""


@contextmanager
def cuda_is_cpu() -> Iterator[None]:
    """What happens inside this context, in any thread, happens on the CPU, whatever device is named.

    Covers tensors, modules, generators, random states, mixed precision, `torch.load` (also without a map_location) and
    what of `torch.cuda` means nothing on a CPU. The rest of it (streams, events, memory statistics, ...) and NCCL raise
    RuntimeError, which says so.
    """
    with ExitStack() as stack:
        for patch in [*device_patches(), *cuda_patches()]:
            stack.enter_context(_compiled_as_before(patch))
            stack.callback(_undo, patch, _replaced(patch))
            setattr(*patch)
        yield


def stay_on_cpu() -> None:
    """The same until this process ends, for threads that outlive its script, too."""
    global _STAYING
    if not _STAYING:
        _STAYING = True
        _ACTIVE.enter_context(cuda_is_cpu())


_STAYING = False


@contextmanager
def _compiled_as_before(patch: Patch) -> Iterator[None]:
    """torch.jit.script takes what replaces one of torch's operators for that operator; it goes by identity."""
    owner, name, new = patch
    table: dict[int, str] = torch.jit._builtins._get_builtin_table()
    operator = table.get(id(getattr(owner, name, None)))
    if operator is not None:
        table[id(new)] = operator
    try:
        yield
    finally:
        if operator is not None:
            table.pop(id(new), None)


def _replaced(patch: Patch) -> Any:
    """What `patch` replaces; None where it is inherited."""
    owner, name, _ = patch
    return vars(owner).get(name)


def _undo(patch: Patch, before: Any) -> None:
    owner, name, _ = patch
    if before is None:
        with contextlib.suppress(AttributeError):
            delattr(owner, name)
    else:
        setattr(owner, name, before)
