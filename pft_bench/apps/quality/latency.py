"""Latency and memory of all variants of an evaluation: checked, then timed in one interleaved measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...harness.cases.group import Group
from ...harness.cases.model import ModelGroup
from ...harness.cases.settings import Settings
from ...harness.measure.contender import Contender
from ...harness.record import Case, Flops
from .evaluate import Variant


class VariantsGroup(Group):
    """Every schedule on every backend of the settings; the first of both is the baseline.

    All of them share the rounds, since here schedules are compared with each other, not only backends.
    """

    title = "latency"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._parts = {schedule.text: ModelGroup(settings, schedule) for schedule in settings.schedules}
        self.baseline = Variant(settings.schedules[0].text, settings.backends[0]).name
        self.cost = sum(part.cost for part in self._parts.values())

    def _of(self, name: str) -> tuple[ModelGroup, str]:
        schedule, _, backend = name.rpartition(" ")
        return self._parts[schedule], backend

    @property
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""
        return {
            Variant(schedule, backend).name: case
            for schedule, part in self._parts.items()
            for backend, case in part.cases.items()
        }

    def contenders(self) -> list[Contender]:
        """Those of `pft-bench run` at level model, under names that hold the schedule too."""
        return [
            replace(contender, name=Variant(schedule, contender.name).name)
            for schedule, part in self._parts.items()
            for contender in part.contenders()
        ]

    def flops(self, name: str) -> Flops:
        """The published count and the attention core's."""
        part, backend = self._of(name)
        return part.flops(backend)

    def stages(self, contender: Contender, samples_s: Sequence[float]) -> dict[str, float]:
        """Seconds by stage."""
        return self._of(contender.name)[0].stages(contender, samples_s)
