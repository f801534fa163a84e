"""A whole table measured live: two backends in this process, or one backend in two versions of the package."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..cases import Group, Settings, plan_groups
from ..cases.group import thread_count
from ..measure.contender import Contender
from ..measure.order import order_of_rounds
from ..measure.timer import CpuTimer, CudaEventTimer, Timer
from ..measure.verdicts import LOOKS, MARGIN
from .design import BLOCK_S, SIDES, Design, Layout, Pair, measure_pair
from .local import NotComparable, local_layout
from .remote import Version, WorkerError, remote_layout, workers_of
from .table import Row, VerdictTable, with_verdicts

OnRound = Callable[[str, int], None]
"""Called with a case's title and the rounds done before each round."""
OnTable = Callable[[VerdictTable], None]
"""Called with all cases whenever more is known, so that it can be kept: a case without a result yet says so."""


@dataclass(frozen=True)
class Terms:
    """On what terms two sides are compared, and who is told meanwhile."""

    margin: float = MARGIN
    """Practical equivalence as a fraction."""
    budget_s: float = float("inf")
    """Seconds that a case may take."""
    on_round: OnRound | None = None
    on_table: OnTable | None = None


USUAL = Terms()
PENDING = "not measured yet"
IN_ONE_PROCESS = "interleaved in one process"


def _timer(settings: Settings) -> Callable[[], Timer]:
    device = torch.device(settings.device)
    return (lambda: CpuTimer(BLOCK_S)) if device.type == "cpu" else (lambda: CudaEventTimer(device))


def _measured(case_id: str, title: str, layout: Layout, design: Design, on_round: OnRound | None) -> Row:
    told = None if on_round is None else (lambda done: on_round(title, done))
    try:
        samples = measure_pair(layout, design, told)
        return Row(
            case_id, title, samples.evidence(design.margin), samples=samples, medians_s=samples.medians_s
        )
    except (NotComparable, WorkerError) as error:
        return Row(case_id, title, reason=str(error))


Side = tuple[Group, str]
"""A group, and which of its contenders."""


def _sides(a: Side, b: Side) -> Callable[[str], Contender]:
    def build(side: str) -> Contender:
        group, name = b if side == "B" else a
        return next(contender for contender in group.contenders() if contender.name == name)

    return build


def _here(
    settings: Settings,
    pairs: Sequence[tuple[Side, Side]],
    names: tuple[str, str],
    terms: Terms,
) -> VerdictTable:
    """A row for each pair of the sides that are called so, interleaved in this process."""
    empty = VerdictTable(*names, IN_ONE_PROCESS, (), margin=terms.margin)
    cases = max(1, len(pairs))
    design = Design(margin=terms.margin, cases=cases, budget_s=terms.budget_s, seed=settings.seed)
    rows = [Row(group.cases[name].case_id, group.title, reason=PENDING) for _, (group, name) in pairs]
    with thread_count(settings.threads), torch.set_grad_enabled(settings.mode != "infer"):
        for number, (a, b) in enumerate(pairs):
            layout = local_layout(_sides(a, b), _timer(settings))
            row = rows[number]
            rows[number] = _measured(row.case_id, row.title, layout, design, terms.on_round)
            if terms.on_table is not None:
                terms.on_table(replace(empty, rows=with_verdicts(rows)))
    return replace(empty, rows=with_verdicts(rows))


def compare_backends(settings: Settings, a: str, b: str, terms: Terms = USUAL) -> VerdictTable:
    """Backend B against backend A on every case of the settings, interleaved in this process."""
    groups = [group for group in plan_groups(settings) if {a, b} <= set(group.cases)]
    return _here(settings, [((group, a), (group, b)) for group in groups], (a, b), terms)


def compare_dtypes(settings: Settings, other: Settings, backend: str, terms: Terms = USUAL) -> VerdictTable:
    """`backend` in the dtype of `other` against that of `settings`, all else equal; each passes its own check."""
    before, after = (
        {group.title: group for group in plan_groups(one) if backend in group.cases}
        for one in (settings, other)
    )
    pairs = [((before[title], backend), (after[title], backend)) for title in after if title in before]
    return _here(settings, pairs, (f"{backend} {settings.dtype}", f"{backend} {other.dtype}"), terms)


def compare_versions(
    settings: Mapping[str, Any],
    a: Version,
    b: Version,
    backends: Sequence[str],
    folder: Path,
    terms: Terms = USUAL,
    *,
    seed: int = 0,
) -> VerdictTable:
    """Version B against version A: the same backends, on every case that both plan, in alternating processes.

    What differs between two processes of identical code lasts as long as they live: where their libraries, heaps and
    stacks lie is decided when they start. Rounds inside them repeat that one draw, and their interval does not know
    of it. So each round takes a new interpreter on every side, started in random order, and the interval is one over
    processes. Starting them takes seconds a round; all cases of the table share them.

    Args:
        settings: keywords of `Settings.make`, JSON-serialisable.
        a: the baseline version.
        b: the other one.
        backends: those to compare; the cases of others are left out.
        folder: where the workers write what they print.
        terms: `on_table` takes what is known after each round of all cases.
        seed: of the order of the rounds.
    """
    pairs: dict[str, Pair] = {}
    rows: dict[str, Row] = {}
    unable: list[str] = []

    def table() -> VerdictTable:
        how = "interleaved, fresh processes on both sides for each round"
        if unable:
            them = " and ".join(unable)
            how += f"; inputs stay what they were checked on, for {them} cannot change them between calls"
        all_rows = [_so_far(row, pairs.get(case_id)) for case_id, row in rows.items()]
        return VerdictTable(a.label, b.label, how, with_verdicts(all_rows), margin=terms.margin)

    for order in order_of_rounds(SIDES, seed):
        started = time.perf_counter()
        with workers_of(a, b, folder, order) as workers:
            plans = {side: worker.ask("plan", settings=dict(settings)) for side, worker in workers.items()}
            if not rows:
                unable = [workers[side].version.label for side in "AB" if not workers[side].ask("changes")]
                rows = _planned(plans, backends, {side: workers[side].version.label for side in "AB"})
                design = Design(terms.margin, max(1, len(rows)), terms.budget_s, seed, rounds_a_layout=1)
                pairs = {case_id: Pair(design) for case_id, row in rows.items() if row.reason is None}
            start_s = (time.perf_counter() - started) / max(1, len(pairs))
            for case_id, pair in list(pairs.items()):
                told = None if terms.on_round is None else partial(terms.on_round, rows[case_id].title)
                pair.elapsed_s += start_s
                try:
                    with pair.clock(), remote_layout(workers, case_id, fresh=not unable) as sampler:
                        pair.take(sampler, told)
                except (NotComparable, WorkerError) as error:
                    rows[case_id] = replace(rows[case_id], reason=str(error))
                    del pairs[case_id]
                    if isinstance(error, WorkerError):
                        break  # what these processes say next may be the answer to another question
                    continue
                if pair.stop_reason is not None:
                    samples = pairs.pop(case_id).samples()
                    found = samples.evidence(terms.margin)
                    rows[case_id] = replace(
                        rows[case_id], evidence=found, samples=samples, medians_s=samples.medians_s
                    )
        if terms.on_table is not None:
            terms.on_table(table())
        if not pairs:
            break
    return table()


def _so_far(row: Row, pair: Pair | None) -> Row:
    """The row of a case, with the samples that it has until now if it is still being measured."""
    if pair is None:
        return row
    if not pair.rounds:
        return replace(row, reason=PENDING)
    samples = pair.samples()
    reason = f"not decided yet: {pair.rounds} of at most {LOOKS[-1]} rounds"
    return replace(row, reason=reason, samples=samples, medians_s=samples.medians_s)


def _planned(
    plans: Mapping[str, Sequence[Mapping[str, str]]], backends: Sequence[str], labels: Mapping[str, str]
) -> dict[str, Row]:
    """Every case that either version plans for these backends; with a reason where the other has no such case."""
    rows = {}
    for item in (*plans["B"], *plans["A"]):
        case_id = item["case_id"]
        if item["backend"] not in backends or case_id in rows:
            continue
        absent = [
            label for side, label in labels.items() if all(p["case_id"] != case_id for p in plans[side])
        ]
        reason = f"{' and '.join(absent)} has no such case" if absent else None
        rows[case_id] = Row(case_id, f"{item['title']}, {item['backend']}", reason=reason)
    return rows
