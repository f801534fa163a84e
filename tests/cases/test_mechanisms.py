"""The attention mechanisms alone: every part is checked and timed, and what is wrong is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from made import measure_quickly, tiny_config

from pft_bench.harness.cases import Settings
from pft_bench.harness.cases import mechanisms as module
from pft_bench.harness.cases.mechanisms import MechanismsGroup
from pft_bench.harness.measure.admission import verify
from pft_bench.harness.measure.rounds import Plan
from pft_bench.harness.record import Memory, Record, Status
from pft_bench.harness.record.yardsticks import MECHANISMS, YARDSTICKS
from pft_bench.maintain.systems_page import claims
from pft_bench.model import PRESETS
from pft_bench.report.mechanisms import mechanism_figure, mechanism_rows

TINY = tiny_config(16, 5, 2)


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "tiny_x2", TINY)
        yield Settings.make(
            schedules=["16,5,2"],
            preset_name="tiny_x2",
            device="cpu",
            threads=1,
            lr_hw=(8, 8),
            levels=("model",),
            plan=Plan(rounds=6, max_rounds=6, budget_s=0.2),
        )


@pytest.fixture(scope="module")
def records(settings: Settings) -> list[Record]:
    with pytest.MonkeyPatch.context() as patched:  # memory is measured elsewhere
        measure_quickly(patched)
        patched.setattr("pft_bench.harness.cases.group._memory", lambda *_: Memory())
        return MechanismsGroup(settings, (2, 4, 8, 16)).run("here").records


def test_every_mechanism_has_a_row_at_every_number_below_the_window(records: list[Record]) -> None:
    assert [record.reason for record in records if record.status is not Status.OK] == []
    rows = mechanism_rows(records)
    assert {row.name for row in rows} == {"dense", *MECHANISMS} <= YARDSTICKS
    for name in set(MECHANISMS) - {"rank-factorized", "progressive, halving"}:
        assert [row.k for row in rows if row.name == name] == [2, 4, 8]
    assert [row.k for row in rows if row.name == "progressive, halving"] == [2, 4], "the window is not halved"
    assert all(row.decide_s > 0 for row in rows if row.name not in ("dense", "rank-factorized"))
    assert rows[0].name == "dense"
    assert len({record.case_id for record in records}) == len(records)


def test_logits_that_are_computed(records: list[Record]) -> None:
    logits = {(r.case.backend, r.case.op, r.case.k): r.case.options["logits"] for r in records}
    assert logits["compute-then-select", "decide", 4] == 16
    assert logits["progressive", "decide", 4] == 4
    assert logits["progressive, halving", "decide", 4] == 8
    assert logits["hashed", "use", 4] == 4
    assert logits["graph", "use", 4] == 16


def test_the_figure_and_the_claims_are_of_these_rows(records: list[Record]) -> None:
    figure = mechanism_figure(records)
    assert figure is not None
    rows = {(row.name, row.k): row for row in mechanism_rows(records)}
    for series in figure.series:
        for point in series.points:
            row = rows[series.name, point.record.case.k]
            assert point.y == (row.decide_s if point.hollow else row.both_s)
    assert mechanism_figure([r for r in records if r.case.backend != "dense"]) is None, (
        "nothing to hold it against"
    )
    text = "\n".join(claims(list(rows.values()), records, 64))
    ratio = rows["compute-then-select", 4].both_s / rows["progressive", 4].both_s
    assert f"| 4 | {ratio:.3g}"[:9] in text
    assert "4 of 64 logits a row, 6.25%" in text


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("dense: use 16", lambda out: (out[0] + 1e-3, *out[1:])),
        ("rank-factorized: use 16", lambda out: out * 1.001),
        ("compute-then-select: decide 4", lambda out: (out[0], (out[1] + 1) % 16, *out[2:])),
        ("compute-then-select: decide 4", lambda out: (*out[:2], out[2] + 0.01, out[3])),
        ("progressive: decide 4", lambda out: (*out[:2], out[2] * 1.01, out[3])),
        ("progressive: use 4", lambda out: out.flip(1)),
        ("hashed: decide 4", lambda index: index.flip(-1)),
        ("hashed: use 4", lambda out: (out[0].roll(1, 2), *out[1:])),
        ("graph: decide 4", lambda linked: linked.flip(-1)),
        ("graph: decide 4", torch.ones_like),
        ("graph: use 4", lambda out: out.roll(1, -1)),
    ],
)
def test_a_wrong_part_has_no_time(settings: Settings, part: str, spoil) -> None:
    with torch.no_grad():
        contender = next(c for c in MechanismsGroup(settings, (4,)).contenders() if c.name == part)
        assert not hasattr(verify(contender), "rejection")
        wrong = module.Contender(contender.name, lambda: spoil(contender.call()), contender.check)
        assert verify(wrong).rejection.status == "failed"
