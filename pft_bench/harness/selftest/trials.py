"""How often is a verdict wrong? Comparisons whose answer is known: identical code, and a planted slowdown.

The planted slowdown is real work: the same kernel on 5% more window-heads. Every trial builds its own inputs and runs
the very design of `pft-bench compare`; its samples go to a JSON Lines file, so that a run can be cut into slices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from ...backends import get
from ...common.drafts import make_folder, named
from ..cases.changing_inputs import Inputs
from ..cases.changing_work import ChangingWork
from ..cases.group import thread_count
from ..check.operator import check_product
from ..check.spot import spot_product
from ..compare.design import Design, measure_pair
from ..compare.local import local_layout
from ..measure.contender import Contender
from ..measure.verdicts import MARGIN
from ..problem import Problem
from .known_answers import KINDS, Kind, Trial, read_trials

WINDOW_HEADS: dict[Kind, int] = {"A/A": 80, "+5%": 84}
"""Window-heads of B; A and A' have 80. Both split evenly over two threads."""


def operands(window_heads: int, seed: int) -> dict[str, Tensor]:
    """Inputs of a small sddmm: 128 tokens, head_dim 30, 32 kept entries."""
    return Problem("sddmm", window_heads, 1, 128, 30, 32, 32, seed=seed).inputs("cpu")


def contender(given: dict[str, Tensor]) -> Contender:
    """The `cpu` backend's sddmm on its own copy of the operands, so that each side's data lies elsewhere. Inputs change
    and results are judged as in every comparison.
    """
    changing, backend = Inputs({name: tensor.clone() for name, tensor in given.items()}), get("cpu")
    inputs = changing.given
    return Contender(
        "cpu",
        partial(backend.sddmm, inputs["q"], inputs["k"], inputs["index"]),
        lambda _: check_product(backend, "sddmm", inputs),
        work=ChangingWork(changing, lambda output, head: spot_product("sddmm", inputs, output, head)),
    )


def run_trial(kind: Kind, number: int, environment: str, threads: int, margin: float = MARGIN) -> Trial:
    """Measure one comparison of known answer."""

    base, other = (operands(WINDOW_HEADS[name], number) for name in ("A/A", kind))

    def build(side: str) -> Contender:
        return contender(other if side == "B" else base)

    with thread_count(threads):
        found = measure_pair(local_layout(build), Design(margin=margin, seed=number))
    return Trial.of(kind, number, environment, threads, margin, found)


def run_trials(
    path: Path, count: int, environment: str, threads: int, stop_after_s: float, margin: float = MARGIN
) -> Iterator[Trial]:
    """Run what `path` lacks of `count` trials of each kind, alternating; each is written before it is given out."""
    known = {(trial.kind, trial.number) for trial in read_trials(path)}
    started = time.perf_counter()
    make_folder(path.parent)
    for number in range(count):
        for kind in KINDS:
            if (kind, number) in known:
                continue
            if time.perf_counter() - started > stop_after_s:
                return
            trial = run_trial(kind, number, environment, threads, margin)
            with named(path), path.open("a") as file:
                file.write(trial.to_json() + "\n")
            yield trial
