"""A sweep: what of the plan is left, and running it with every record on the disk before the next case begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ...common.text import Lines, file_name
from ..cases import Group, Listener, Settings, run_or_explain
from ..cases.group import thread_count
from ..measure import roof
from ..measure.audit import CpuProbe, CudaProbe, audit
from ..measure.environment import environment, fingerprint
from ..measure.process_state import watching_files
from ..measure.rounds import Progress
from ..measure.timer import timer_for
from ..record import (
    Record,
    RunWriter,
    known_environments,
    known_settings,
    read_folder,
    remember_plan,
    remember_settings,
    roof_of,
)
from .board import Board, Sight
from .foreign import IMPORTED, Foreign
from .isolation import Death, Workers, WorkersFailed, run_isolated
from .resume import (
    decisive,
    differences_of_environments,
    differences_of_settings,
    refuse,
)
from .shard import Shard


@dataclass(frozen=True)
class SweepPlan:
    """All groups of the sweep, those of this share, those of them that are left to run, and what is on the disk."""

    groups: list[Group]
    mine: list[Group]
    left: list[Group]
    done: dict[str, Record]
    warnings: tuple[str, ...]

    @property
    def order(self) -> list[str]:
        """Case ids of the whole sweep in the order of its plan."""
        return [case.case_id for group in self.groups for case in group.cases.values()]


def plan_sweep(groups: Sequence[Group], folder: Path, shard: Shard) -> SweepPlan:
    """What of the groups is to be run, given what the folder holds. Lines cut short by a kill are in the warnings.

    Raises:
        RecordError: lines of the folder's files that are no records, by number.
    """
    mine = shard.of(groups)
    scan = read_folder(folder)
    done = {record.case_id: record for record in scan.records}
    left = [group for group in mine if any(case.case_id not in done for case in group.cases.values())]
    return SweepPlan(list(groups), mine, left, done, tuple(map(str, scan.truncated)))


class Watcher(Protocol):
    """Who wants to see how a sweep goes."""

    def start(self, group: Group) -> None:
        """A group begins."""

    def progress(self, rounds: int, planned: int, doing: str, contender: str = "") -> None:
        """Where it stands: one of `board.PHASES`, and whose turn it is."""

    def finish(self, group: Group, records: Sequence[Record]) -> None:
        """Its records are on the disk."""

    def say(self, text: str) -> None:
        """Something to be told, e.g. what a worker printed."""


@dataclass(frozen=True)
class Sweep:
    """Runs groups, in workers or, without, in this process, and appends their records to the folder.

    `inputs` are settings of one command alone that its rows depend on, under the names of their options. `beside` is a
    file of rows that are no records and depend on the same settings and code.
    """

    settings: Settings
    folder: Path
    shard: Shard = field(default_factory=Shard)
    workers: Workers | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""

    @cached_property
    def foreign(self) -> Foreign:
        """Watches what the plug-ins must not change."""
        return Foreign(self.folder, self.shard.name, self.plugins)

    @property
    def has_rows_beside(self) -> bool:
        """Whether the folder holds such a file."""
        return bool(self.beside) and (self.folder / self.beside).exists()

    def require_same(self, plan: SweepPlan) -> str | None:
        """Begin the folder, or make sure that it can be resumed; what could not be made sure of, in words.

        Raises:
            ValueError: its rows depend on settings, inputs, code or a machine that are different now; all are named.
        """
        now = {**decisive(self.settings, self.workers), **self.inputs}
        held = self.foreign.held
        records, beside = list(plan.done.values()), self.has_rows_beside
        begin = not records and not beside and self.shard.name is None
        found, unsure = [], None
        if (records or beside) and known_settings(self.folder) is None:
            unsure = f"the rows in {self.folder} do not say with which --rounds, --budget and inputs"
        else:
            with held.writing():
                stored = remember_settings(self.folder, now, begin=begin)
            found += differences_of_settings(stored, now, records)
        own = {case.case_id for group in plan.mine for case in group.cases.values()}
        mine = records if self.shard.name is None else [r for r in records if r.case_id in own]
        if mine or beside:
            known, here = known_environments(self.folder), self._in_worker(_software, self.plugins)
            self.foreign.require(IMPORTED)
            for name in dict.fromkeys([*(record.environment for record in mine), *(known if beside else ())]):
                found += differences_of_environments(known[name], here) if name in known else []
        refuse(self.folder, found)
        titles = {case.case_id: group.title for group in plan.groups for case in group.cases.values()}
        with held.writing():
            remember_plan(self.folder, titles, begin=begin)
        return unsure

    def describe_machine(self) -> dict[str, Any]:
        """The environment as a worker sees it, with the roof and the audit of the timer.

        Raises:
            WorkersFailed: the timer is not sound here, or the worker died.
        """
        found = self._in_worker(_machine, self.settings, self.plugins)
        bad = [f"{item['name']}: {item['detail']}" for item in found["now"]["timer"] if not item["passed"]]
        if bad:
            raise WorkersFailed(f"the timer fails its audit, nothing was timed: {'; '.join(bad)}")
        return found

    def _in_worker(self, look: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        call = partial(look, *arguments)
        found: dict[str, Any] | Death
        found = call(None) if self.workers is None else self.workers.run(call, limited=False)
        if isinstance(found, Death):
            raise WorkersFailed(
                Lines.of(f"the machine could not be measured: {found.reason}", *found.output.splitlines())
            )
        return found

    def run(self, plan: SweepPlan, watcher: Watcher) -> list[Record]:
        """Run what is left of the plan; all new records."""
        with self.measuring(plan.done, watcher) as measured:
            found = [record for group in plan.left for record in measured(group)]
        return [record for record in found if record.case_id not in plan.done]

    @contextmanager
    def measuring(
        self, done: Mapping[str, Record], watcher: Watcher
    ) -> Iterator[Callable[[Group], list[Record]]]:
        """A function that gives a group's records: those that are in `done`, else measured and on the disk.

        For groups that are chosen one after the other, by what those before have shown.
        """
        run, held = RunWriter(self.folder, self.shard.name), self.foreign.held
        environment, roof = "", None

        def measured(group: Group) -> list[Record]:
            nonlocal environment, roof
            cases = [case.case_id for case in group.cases.values()]
            if all(name in done for name in cases):
                return [done[name] for name in cases]
            if not environment:
                machine = self.describe_machine()
                self.foreign.require(IMPORTED)
                with held.writing():
                    environment = run.remember(machine)
                roof = roof_of(known_environments(self.folder)[environment])
                if roof is not None and (said := roof.slower(self.settings.dtype)):
                    watcher.say(said)
            watcher.start(group)
            found, said = self.foreign.judged(group, self._run(group, environment, watcher))
            if said:
                watcher.say(said)
            found = [record.under(roof) for record in found]
            fresh = [record for record in found if record.case_id not in done]
            with held.writing():
                for record in fresh:
                    run.append(record)
            watcher.finish(group, fresh)
            return [done.get(record.case_id, record) for record in found]

        try:
            yield measured
        finally:
            if names := held.changed():
                watcher.say(f"the run folder was changed and is put back: {', '.join(names)}")
            held.release()

    def _run(self, group: Group, environment: str, watcher: Watcher) -> list[Record]:
        if self.workers is None:
            return self._run_here(group, environment, watcher)
        names = list(group.cases)

        def watch(sight: Sight) -> None:
            contender = names[sight.contender] if sight.contender >= 0 else ""
            watcher.progress(sight.rounds, sight.planned, sight.doing, contender)

        keep = self._keep_output(group)
        records = run_isolated(self.workers, group, environment, watch, keep, self.foreign.find)
        said = self.workers.output().strip()
        if said:
            watcher.say(f"printed while {group.title} was measured: {said}")
        return records

    def _run_here(self, group: Group, environment: str, watcher: Watcher) -> list[Record]:
        """In this process. Between samples nobody is told anything: the watcher would work beside the timing."""
        at = (0, 0)

        def progress(now: Progress) -> None:
            nonlocal at
            at = now.rounds, now.planned
            watcher.progress(*at, "timing")

        def turn(name: str, doing: str) -> None:
            if doing != "timing":
                watcher.progress(*at, doing, name)

        with watching_files(self.foreign.find):
            return run_or_explain(group, environment, Listener(progress, turn))

    def _keep_output(self, group: Group) -> Callable[[str | None, Death], None]:
        """What a worker that died had written, stacks included, is worth a file: `logs/<case id>.txt`."""

        def keep(name: str | None, death: Death) -> None:
            if death.output:
                logs = self.folder / "logs"
                logs.mkdir(exist_ok=True)
                case = group.cases[group.baseline if name is None else name]
                (logs / f"{file_name(case.case_id)}.txt").write_text(death.output)

        return keep


def _software(plugins: Mapping[str, str], board: Board | None) -> dict[str, Any]:
    """The environment; plug-ins are part of the fingerprint, for they hold the kernels."""
    found = environment()
    if plugins:
        found["plugins"] = dict(plugins)
        found["fingerprint"] = fingerprint(found)
    return found


def _machine(settings: Settings, plugins: Mapping[str, str], board: Board | None) -> dict[str, Any]:
    """Environment, roof (on the run's threads), and what the timer says of calls of known cost: 0.2 s, once a run."""
    device = torch.device(settings.device)
    with thread_count(settings.threads):
        measured = roof.measure_roof(settings.device, settings.torch_dtype)
        on_gpu = device.type == "cuda"
        findings = audit(timer_for(device), CudaProbe(device) if on_gpu else CpuProbe())
    found = _software(plugins, board)
    found["now"] |= {"roof": vars(measured), "timer": [vars(finding) for finding in findings]}
    return found
