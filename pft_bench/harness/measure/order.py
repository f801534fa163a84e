"""The order of contenders in rounds. Who reads records knows it too: nothing of PyTorch is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

CONTROL = "A'"
"""Slot of the baseline's second run in a round."""


def order_of_rounds(slots: Sequence[str], seed: int) -> Iterator[tuple[str, ...]]:
    """Random orders without end, each followed by its mirror image, so that a drift favours no slot."""
    generator = np.random.default_rng(seed)
    while True:
        order = tuple(slots[i] for i in generator.permutation(len(slots)))
        yield order
        yield order[::-1]
