"""Progressive focused attention: sparse kernels, their proof and their measurement, and the PFT model.

What is offered here is imported when it is first asked for: the command line answers without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backends
    from .backends import BackendInfo, BackendUnavailable
    from .model import PFT, load
    from .ops import ChainState, Index, sddmm, spmm, spmm_transpose
    from .ops.progressive_attention import progressive_attention

__version__ = "0.1.0"

__all__ = [
    "PFT",
    "BackendInfo",
    "BackendUnavailable",
    "ChainState",
    "Index",
    "backends",
    "load",
    "progressive_attention",
    "sddmm",
    "spmm",
    "spmm_transpose",
]

_HOMES = {
    "backends": ("BackendInfo", "BackendUnavailable"),
    "model": ("PFT", "load"),
    "ops": ("ChainState", "Index", "progressive_attention", "sddmm", "spmm", "spmm_transpose"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name == home:
            return import_module(f".{home}", __name__)
        if name in names:
            found = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
