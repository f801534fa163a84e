"""What nvcc made of the kernels, as far as the model needs it: registers, and instructions by unit.

Committed, so that nobody needs nvcc to predict: `python -m pft_bench.insight.counters.sass` renews it where nvcc is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COMPILED = Path(__file__).with_name("compiled.json")


@dataclass(frozen=True)
class Instructions:
    """Warp instructions of the emulated blocks, by the unit that runs them."""

    issue: float
    alu: float
    fma: float
    imad: float
    mufu: float
    explained: float
    """The share of the counted requests and steps that the execution counts of the SASS agree with."""


@cache
def compiled() -> dict[str, Any]:
    """The committed file."""
    found: dict[str, Any] = json.loads(COMPILED.read_text())
    return found


def registers_of(kernel: str, dtype: str, arch: int) -> int:
    """Registers of a thread: the most of the kernel's instances for that dtype. 0 where the kernel is not known."""
    known = compiled()["registers"].get(str(arch), {})
    of_kernel = {
        label: n
        for label, n in known.items()
        if label.split("<")[0] == kernel and (dtype in label or "<" not in label)
    }
    return max(of_kernel.values(), default=0)
