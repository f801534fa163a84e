"""Attention variants as candidates of one run."""

from __future__ import annotations

import pytest
from made import measure_quickly, tiny_config

from pft_bench.harness.cases import Settings, plan_groups
from pft_bench.harness.cases import model as level
from pft_bench.harness.measure.rounds import Plan
from pft_bench.harness.record import Status
from pft_bench.model import PRESETS, published_macs
from pft_bench.report.tables import step_text

TINY = tiny_config(16, 5, 2)
NAMES = ("dense", "topk", "progressive", "pfa", "compute-then-select", "hashed", "rank-factorized")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    measure_quickly(monkeypatch)
    monkeypatch.setitem(PRESETS, "tiny_x2", TINY)

    def make(**others):
        given = {
            "schedules": ["16,5,2"],
            "preset_name": "tiny_x2",
            "device": "cpu",
            "threads": 1,
            "lr_hw": (8, 8),
            "attentions": NAMES,
            "plan": Plan(rounds=6, max_rounds=6, budget_s=0.2),
        }
        return Settings.make(**(given | others))

    return make


def test_variants_train(settings) -> None:
    """Forward and backward, checked against float64."""
    group = plan_groups(settings(mode="train", backends=["cpu"], attentions=["pfa", "hashed"]))[0]
    assert [(r.status, r.reason) for r in group.run("here").records] == [(Status.OK, None)] * 2


def test_every_variant_is_checked_and_timed_against_standard_attention(settings) -> None:
    groups = plan_groups(settings(backends=["cpu"]))
    assert [group.baseline for group in groups] == ["dense"]
    records = groups[0].run("here").records
    assert [record.status for record in records] == [Status.OK] * len(NAMES), [r.reason for r in records]
    assert [step_text(record) for record in records] == [f"16,5,2 {name}" for name in NAMES]
    assert len({record.case_id for record in records}) == len(NAMES)
    counted = {name: record.flops.counted_flops for name, record in zip(NAMES, records, strict=True)}
    assert counted["hashed"] < counted["topk"] < counted["dense"], "what is filtered first is not computed"
    assert counted["progressive"] > counted["dense"], "a dense chain repeats its products"
    assert counted["pfa"] < counted["progressive"]
    assert counted["compute-then-select"] > counted["topk"], "one more channel of values"


def test_counts_follow_the_definition(settings) -> None:
    """Products of one token, by hand: 16 keys; layers keep 16, 16, 5, 5, 2, 2 in chains of 16, 5, 2."""
    group = plan_groups(settings())[0]
    dim, tokens = TINY.embed_dim, 64
    macs = {name: group.flops(name).paper_macs for name in NAMES}
    features = 6 * TINY.num_heads * 24 * 16
    assert macs["rank-factorized"] - macs["dense"] == tokens * features
    pairs = {"dense": 6 * 32, "progressive": 6 * 32, "topk": 2 * (32 + 21 + 18), "hashed": 2 * (32 + 10 + 4)}
    for name, keys in pairs.items():
        assert macs[name] - macs["pfa"] == tokens * dim * (keys - 2 * (32 + 21 + 7)), name
    assert macs["compute-then-select"] == macs["topk"]
    assert macs["pfa"] == published_macs(TINY, 8, 8)
    kernel = {name: group.flops(name).kernel_flops for name in NAMES}
    assert kernel["pfa"] < kernel["topk"] == kernel["compute-then-select"] < kernel["dense"]


def test_one_group_for_each_schedule_and_fast_backend(settings) -> None:
    made = plan_groups(settings(schedules=["16,5,2", "16,16,4"], backends=["dense", "cpu"]))
    assert [group.backend for group in made] == ["cpu", "cpu"]
    assert [group.backend for group in plan_groups(settings(backends=["dense"]))] == ["dense"]
    assert plan_groups(settings(attentions=["pfa", "topk"]))[0].baseline == "pfa"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attentions": ["pfa", "sparse"]}, r"attention must be of dense, .* got 'sparse'"),
        ({"attentions": ["pfa"]}, "at least two variants"),
        ({"levels": ["layer"]}, "level model only"),
    ],
)
def test_errors(settings, given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_the_model_check_can_follow_the_choices(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model that made an output, a near tie in it could not be told from an error."""
    given = []
    right = level.check_output
    monkeypatch.setattr(level, "check_output", lambda *a: given.append(a[3]) or right(*a))
    group = plan_groups(settings(backends=["cpu"], attentions=["pfa", "topk"]))[0]
    assert [record.status for record in group.run("here").records] == [Status.OK] * 2
    assert [model.config.attention for model in given] == ["pfa", "topk"]
