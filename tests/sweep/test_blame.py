"""Which contender is to blame for the death of a process: a plug-in in it may have forged whose turn it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pft_bench.harness.record import Case, Record, Status
from pft_bench.harness.sweep import Death, run_isolated

CASES = {
    name: Case("op", "spmm", name, "cpu", "float32", "infer", 1, 0)
    for name in ("dense", "cpu", "mine", "other")
}
GROUP: Any = SimpleNamespace(
    title="spmm", cases=CASES, baseline="dense", fresh=False, foreign=lambda: frozenset({"mine", "other"})
)


class Scripted:
    """Workers whose process dies if `death` returns a death for the contenders that run, else measures them."""

    def __init__(self, death: Callable[[set[str]], Death | None], records: bool = True) -> None:
        self.death, self.records, self.ran = death, records, list[set[str]]()

    def run(self, call: Any, watch: object, fresh: bool) -> Any:
        _, environment, lost, _ = call.args
        self.ran.append(set(CASES) - lost.keys())
        if (death := self.death(self.ran[-1])) is not None:
            return death
        rows = {name: (Status(lost[name].status), lost[name].reason) for name in lost}
        return [
            Record.without_result(case, environment, *rows.get(name, (Status.SKIPPED, "measured")))
            for name, case in CASES.items()
        ]

    def output(self) -> str:
        return ""


def outcome(workers: Scripted) -> dict[str, str]:
    return {record.case.backend: str(record.reason) for record in run_isolated(workers, GROUP, "e")}  # type: ignore[arg-type]


DIED = "died"


@pytest.mark.parametrize("contender", [0, None], ids=["the baseline's turn", "nobody's turn"])
def test_a_plugin_that_dies_in_anothers_turn_is_to_blame(contender: int | None) -> None:
    workers = Scripted(lambda ran: Death("crashed", DIED, contender, "") if "mine" in ran else None)
    assert outcome(workers) == {"dense": "measured", "cpu": "measured", "mine": DIED, "other": DIED}


def test_one_of_ours_that_dies_without_plugins_too_is_to_blame_itself() -> None:
    workers = Scripted(lambda ran: Death("oom", DIED, 0, "") if "dense" in ran else None)
    assert outcome(workers) == {"dense": DIED, "cpu": "measured", "mine": "measured", "other": "measured"}
    assert len(workers.ran) == 3


def test_a_plugin_that_dies_in_its_own_turn_is_alone_to_blame() -> None:
    workers = Scripted(lambda ran: Death("crashed", DIED, 2, "") if "mine" in ran else None)
    assert outcome(workers) == {"dense": "measured", "cpu": "measured", "mine": DIED, "other": "measured"}


def test_a_group_that_dies_without_plugins_too_ends_with_a_reason_in_every_row() -> None:
    workers = Scripted(lambda ran: Death("crashed", DIED, None, ""))
    assert set(outcome(workers).values()) == {DIED}


def test_an_answer_with_other_rows_than_the_groups_is_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Scripted(lambda ran: None)
    run = workers.run
    monkeypatch.setattr(workers, "run", lambda *a, **b: run(*a, **b)[:: 1 + ("mine" in workers.ran[-1])])
    found = outcome(workers)
    assert (found["dense"], found["cpu"]) == ("measured", "measured")
    assert all("other rows than those of its group" in found[name] for name in ("mine", "other"))
