"""Shares of a sweep: which groups belong to which of several runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..cases import Group


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count`, counted from 1. `Shard(1, 1)` is everything."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`, e.g. `2/4`."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if found is None:
            raise ValueError(f"--shard must be i/n, e.g. 1/2, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str | None:
        """For file names, e.g. `2of4`; None for everything."""
        return None if self.count == 1 else f"{self.index}of{self.count}"

    def of(self, groups: Sequence[Group]) -> list[Group]:
        """This share, in the order given. Costly groups are dealt first, each to whoever has least so far.

        It depends on the plan alone and not on what is done already, so that a resumed share is the same share.
        """
        loads = [0.0] * self.count
        mine = set()
        for position in sorted(range(len(groups)), key=lambda p: (-groups[p].cost, p)):
            least = loads.index(min(loads))
            loads[least] += groups[position].cost
            if least == self.index - 1:
                mine.add(position)
        return [group for position, group in enumerate(groups) if position in mine]
