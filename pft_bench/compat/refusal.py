"""What compat says where it covers nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def refusal(name: str) -> RuntimeError:
    """The error of whatever asks for `name`, which needs a GPU."""
    return RuntimeError(
        f"pft_bench.compat does not cover {name}: this script runs on the CPU, where there are no streams, events, "
        f"graphs, memory statistics or properties of a GPU; leave the call out, or run it on a machine with a GPU"
    )


def refused(name: str) -> Callable[..., NoReturn]:
    """A function that raises `refusal`, each time another one."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise refusal(name)

    return refuse
