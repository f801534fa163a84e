"""Loading the compiled modules, which must leave the arithmetic of the process as it was."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_found: dict[str, ModuleType | ImportError] = {}


def flushes_denormals() -> bool:
    """Whether the processor takes results below 2.2e-308 (float32: 1.2e-38) for 0 in this thread."""
    return sys.float_info.min / float(2) == 0.0


def load_native(name: str) -> ModuleType:
    """The compiled module `pft_bench.<name>`.

    Raises ImportError where it was not built, does not load, or switches denormal numbers off as it loads, as all that
    is linked with -ffast-math by some compilers does; then they are switched on again.
    """
    if name not in _found:
        _found[name] = _load(f"pft_bench.{name}")
    module = _found[name]
    if isinstance(module, ImportError):
        raise module
    return module


def _load(full_name: str) -> ModuleType | ImportError:
    before = flushes_denormals()
    try:
        module = importlib.import_module(full_name)
    except ImportError as error:
        return error
    if flushes_denormals() and not before:
        import torch

        torch.set_flush_denormal(False)
        return ImportError(
            f"{full_name} switches denormal numbers off in the whole process: it was linked with -ffast-math or "
            "crtfastmath.o; take that out of CXXFLAGS and LDFLAGS and build it again"
        )
    return module
