"""Kernels that are right when they are checked and something else when they are timed, as programs that write kernels
have found them, kernels that disturb who runs beside them, and kernels that reach for the harness. None may get a time.
"""

from collections.abc import Iterator

from . import between, harness, hiding, looking, process, remembering, results  # noqa: F401 - each plants its own
from .base import CHEATS, Cheat

__all__ = ["CHEATS", "Cheat", "tried"]


def tried() -> Iterator[tuple[Cheat, str]]:
    """Each of them in each of its modes."""
    for cheat in CHEATS:
        for mode in cheat.modes:
            yield cheat, mode
