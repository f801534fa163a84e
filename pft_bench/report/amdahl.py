"""How much a faster attention could still gain: Amdahl's law on the measured stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..harness.record import Record

ATTENTION = ("logits", "select", "av", "attention")
"""Stages that a kernel replaces; everything else stays as it is."""

GROUPS = {
    "attention": ATTENTION,
    "around it": ("projection", "lepe", "norm", "window"),
    "feed-forward": ("ffn",),
    "convolutions": ("conv",),
    "other": ("other",),
}
"""Stages by what they belong to, in the order of the flame-like bar."""


@dataclass(frozen=True)
class Ceiling:
    """Of one model record: seconds in attention and in all, and what attention at no cost would gain."""

    record: Record
    attention_s: float
    total_s: float

    @property
    def share(self) -> float:
        """Part of the time that is attention."""
        return self.attention_s / self.total_s

    @property
    def gain(self) -> float:
        """Amdahl's ceiling `1 / (1 - share)`: how many times faster the model is with attention free."""
        return self.total_s / (self.total_s - self.attention_s)


def ceilings(records: Sequence[Record]) -> list[Ceiling]:
    """One for each record with stages in which something besides attention took time."""
    found = []
    for record in records:
        stages = record.stages_s or {}
        attention, total = sum(stages.get(name, 0.0) for name in ATTENTION), sum(stages.values())
        if total > attention:
            found.append(Ceiling(record, attention, total))
    return found


def stage_groups(record: Record) -> list[tuple[str, list[tuple[str, float]]]]:
    """The record's stages by group: (group, [(stage, seconds), ...]); unknown stages are groups of their own."""
    stages = dict(record.stages_s or {})
    found = []
    for group, names in GROUPS.items():
        inside = [(name, stages.pop(name)) for name in names if name in stages]
        if inside:
            found.append((group, inside))
    return found + [(name, [(name, seconds)]) for name, seconds in stages.items()]
