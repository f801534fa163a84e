"""Contenders of several groups in the same rounds: schedules, or a sparse layer against a dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..measure.contender import Call, Contender
from ..record import Case, Flops
from .group import Group
from .layer import LayerGroup
from .model import ModelGroup
from .settings import BASELINE, Settings

DENSE, SPARSE = "dense step", "sparse"
"""The two contenders of a `StepsGroup`, in this order."""


class JoinedGroup(Group):
    """The contenders of other groups under names of its own; each is checked, counted and staged as its group does it.

    Args:
        settings: those of the rounds.
        members: name -> the group that it is from, and its name there. The first one is the baseline.
    """

    def __init__(self, settings: Settings, members: Mapping[str, tuple[Group, str]]) -> None:
        super().__init__(settings)
        self.members = dict(members)
        self.baseline = next(iter(self.members))
        self.cost = sum(group.cost for group in dict.fromkeys(group for group, _ in self.members.values()))

    @property
    def cases(self) -> dict[str, Case]:
        """Name -> the case that it is in its own group."""
        return {name: group.cases[own] for name, (group, own) in self.members.items()}

    def contenders(self) -> list[Contender]:
        """Those of each group, which is set up once."""
        made = {
            (group, contender.name): contender
            for group in dict.fromkeys(group for group, _ in self.members.values())
            for contender in group.contenders()
        }
        return [replace(made[member], name=name) for name, member in self.members.items()]

    def _of(self, contender: Contender) -> tuple[Group, Contender]:
        group, own = self.members[contender.name]
        return group, replace(contender, name=own)

    def counted(self, contender: Contender) -> Call:
        """What its group counts."""
        group, own = self._of(contender)
        return group.counted(own)

    def stages(self, contender: Contender, samples_s: Sequence[float]) -> dict[str, float] | None:
        """Its stages, where its group has some."""
        group, own = self._of(contender)
        return group.stages(own, samples_s)

    def predicted_bytes(self, name: str) -> int | None:
        """What its group predicts."""
        group, own = self.members[name]
        return group.predicted_bytes(own)

    def flops(self, name: str) -> Flops:
        """The counts of its group."""
        group, own = self.members[name]
        return group.flops(own)


class SchedulesGroup(JoinedGroup):
    """The model with every schedule on every backend of the settings.

    The baseline is dense where that was asked for: the schedule that keeps every token, else the dense backend. Of what
    is left to choose from it is the first.

    All of them share the rounds, since here schedules are compared with each other, not only backends.
    """

    title = "latency"

    def __init__(self, settings: Settings) -> None:
        parts = {schedule.text: ModelGroup(settings, schedule) for schedule in settings.schedules}
        super().__init__(
            settings,
            {
                f"{schedule} {backend}": (part, backend)
                for schedule, part in parts.items()
                for backend in settings.backends
            },
        )
        cases, area = self.cases, settings.config.window_size**2

        def rank(name: str) -> int:
            every_token = set(cases[name].schedule or ()) == {area}
            return 2 if every_token else int(cases[name].backend == BASELINE)

        self.baseline = max(self.members, key=rank)  # of equals the first


class StepsGroup(JoinedGroup):
    """One backend's sparse step K -> K beside its own dense step, all tokens of the same windows."""

    def __init__(self, settings: Settings, backend: str, k: int) -> None:
        self.backend, self.k = backend, k
        self.title = f"{backend}, K = {k} against all tokens"
        alone, area = replace(settings, backends=(backend,)), settings.config.window_size**2
        steps = {DENSE: LayerGroup(alone, area, area), SPARSE: LayerGroup(alone, k, k)}
        for step in steps.values():
            step.peers = ()
        super().__init__(settings, {name: (step, backend) for name, step in steps.items()})

    @property
    def cases(self) -> dict[str, Case]:
        """Each says what it is held against, so that neither is a case of `pft-bench run`, nor of another K."""
        against = {DENSE: f"{self.backend}, K={self.k}", SPARSE: f"{self.backend}, {DENSE}"}
        return {
            name: replace(case, options={"against": against[name]}) for name, case in super().cases.items()
        }
