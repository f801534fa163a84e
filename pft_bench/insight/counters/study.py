"""A model's attention core on a chip: every distinct step counted once, predicted, and put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...common.schedule import FocusSchedule
from ...model import PFTConfig
from .chips import Chip
from .compiled import Instructions
from .counted import CountedLaunch
from .emulate import PRODUCTS, Work, count_launches
from .instructions import instructions_of
from .model import Prediction, Total, floor_of, predict

PREDICTED = "Predicted from counts; nothing was measured."


class LaunchRow(NamedTuple):
    """One launch of one work."""

    work: Work
    launch: CountedLaunch
    prediction: Prediction


@dataclass(frozen=True)
class Study:
    """What was counted for a chip, work by work."""

    chip: Chip
    rows: tuple[LaunchRow, ...]
    totals: tuple[tuple[Work, Total], ...]

    def core(self, title: str, works: Counter[Work]) -> Total:
        """Several works one after another, each so many times."""
        known = dict(self.totals)
        parts = [(times, known[work]) for work, times in works.items()]
        return Total(
            title,
            tuple(p for times, part in parts for _ in range(times) for p in part.launches),
            sum(times * part.floor for times, part in parts),
            0.0,
        )


def layer_works(
    config: PFTConfig, schedule: FocusSchedule, size_hw: tuple[int, int], dtype: str, mode: str = "infer"
) -> Counter[Work]:
    """The layers of a model on one image, and how often each occurs; mode train: forward and backward."""
    side = config.window_size
    windows = -(-size_hw[0] // side) * -(-size_hw[1] // side)
    sizes = (windows, config.num_heads, side * side, config.embed_dim // config.num_heads)
    found: Counter[Work] = Counter()
    for one in ("infer", "backward") if mode == "train" else (mode,):
        for candidates, kept in config.along_chains(schedule.num_topk):
            found[Work("attention", *sizes, candidates, kept, dtype, one)] += 1
    return found


def product_works(layers: Counter[Work]) -> list[Work]:
    """The sparse products at every K below the window of these layers."""
    first = next(iter(layers))
    sizes = (first.windows, first.heads, first.tokens, first.head_dim)
    kept = sorted({work.kept for work in layers if work.kept < work.tokens}, reverse=True)
    return [Work(op, *sizes, k, k, first.dtype) for k in kept for op in PRODUCTS]


Counts = Sequence[tuple[CountedLaunch, Instructions | None]]


def count_work(work: Work, chip: Chip) -> Counts:
    """The launches of one work, emulated now, each with its instructions where its SASS is known."""
    return [(launch, instructions_of(launch)) for launch in count_launches(work, chip)]


def study(
    works: Sequence[Work],
    chip: Chip,
    counts: Callable[[Work, Chip], Counts] = count_work,
    progress: Callable[[str], None] = lambda _: None,
    keep: Callable[[Study], None] = lambda _: None,
) -> Study:
    """Counts and predicts each work; `progress` is told which comes next, `keep` is given what there is after each."""
    so_far = Study(chip, (), ())
    for work in works:
        progress(f"{work.title} {work.dtype}")
        found = counts(work, chip)
        mine = [LaunchRow(work, launch, predict(work, launch, chip, known)) for launch, known in found]
        floor = floor_of(work, [launch for launch, _ in found], chip)
        total = Total(work.title, tuple(row.prediction for row in mine), *floor)
        so_far = Study(chip, (*so_far.rows, *mine), (*so_far.totals, (work, total)))
        keep(so_far)
    return so_far
