"""A whole table measured live: two backends in this process, or one backend in two versions of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cases import Group, Settings, plan_groups
from ..cases.group import thread_count
from ..measure.candidate import Candidate
from ..measure.timer import CpuTimer, CudaEventTimer, Timer
from .design import BLOCK_S, Design, Layout, measure_pair
from .local import NotComparable, local_layout
from .remote import Version, WorkerError, remote_layout, workers_of
from .table import Row, Table, with_verdicts
from .verdicts import MARGIN

OnRound = Callable[[str, int], None]
"""Called with a case's title and the rounds done before each round."""


def _timer(settings: Settings) -> Callable[[], Timer]:
    device = torch.device(settings.device)
    return (lambda: CpuTimer(BLOCK_S)) if device.type == "cpu" else (lambda: CudaEventTimer(device))


def _measured(case_id: str, title: str, layout: Layout, design: Design, on_round: OnRound | None) -> Row:
    told = None if on_round is None else (lambda done: on_round(title, done))
    try:
        samples = measure_pair(layout, design, told)
        return Row(case_id, title, evidence=samples.evidence(design.margin), samples=samples)
    except (NotComparable, WorkerError) as error:
        return Row(case_id, title, reason=str(error))


def _sides(group: Group, a: str, b: str) -> Callable[[str], Candidate]:
    def build(side: str) -> Candidate:
        name = b if side == "B" else a
        return next(candidate for candidate in group.candidates() if candidate.name == name)

    return build


def compare_backends(
    settings: Settings,
    a: str,
    b: str,
    *,
    margin: float = MARGIN,
    budget_s: float = float("inf"),
    on_round: OnRound | None = None,
) -> Table:
    """Backend B against backend A on every case of the settings, interleaved in this process."""
    groups = [group for group in plan_groups(settings) if {a, b} <= set(group.cases)]
    design = Design(margin=margin, cases=max(1, len(groups)), budget_s=budget_s, seed=settings.seed)
    rows = []
    with thread_count(settings.threads), torch.set_grad_enabled(settings.mode == "train"):
        for group in groups:
            layout = local_layout(_sides(group, a, b), _timer(settings))
            rows.append(_measured(group.cases[b].case_id, group.title, layout, design, on_round))
    return Table(a, b, "interleaved in one process", with_verdicts(rows), margin=margin)


def compare_versions(
    settings: Mapping[str, Any],
    a: Version,
    b: Version,
    backends: Sequence[str],
    folder: Path,
    *,
    margin: float = MARGIN,
    budget_s: float = float("inf"),
    seed: int = 0,
    on_round: OnRound | None = None,
) -> Table:
    """Version B against version A: the same backends, on every case that both plan, in alternating processes.

    Args:
        settings: keywords of `Settings.make`, JSON-serialisable.
        a: the baseline version.
        b: the other one.
        backends: those to compare; the cases of others are left out.
        folder: where the workers write what they print.
        margin: practical equivalence as a fraction.
        budget_s: seconds a case may take.
        seed: of the order of the rounds.
        on_round: progress.
    """
    rows: list[Row] = []
    with workers_of(a, b, folder) as workers:
        plans = {side: worker.ask("plan", settings=dict(settings)) for side, worker in workers.items()}
        known = {side: {item["case_id"] for item in plan} for side, plan in plans.items()}
        wanted = [item for item in plans["B"] if item["backend"] in backends]
        wanted += [
            item for item in plans["A"] if item["backend"] in backends and item["case_id"] not in known["B"]
        ]
        # Two processes with identical code differ by percents for as long as they live: each round takes new ones.
        design = Design(margin, max(1, len(wanted)), budget_s, seed, rounds_a_layout=1)
        for item in wanted:
            case_id, title = item["case_id"], f"{item['title']}, {item['backend']}"
            absent = [workers[side].version.label for side in "AB" if case_id not in known[side]]
            if absent:
                rows.append(Row(case_id, title, reason=f"{' and '.join(absent)} has no such case"))
                continue
            layout = remote_layout(workers, dict.fromkeys(workers, case_id))
            rows.append(_measured(case_id, title, layout, design, on_round))
    return Table(a.label, b.label, "interleaved, a process a side", with_verdicts(rows), margin=margin)
