"""Shares: their texts, that they are a partition, and that none is much larger than another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pft_bench.harness.cases import Settings, plan_groups
from pft_bench.harness.sweep import Shard, find_ranks


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "1/2/3", "-1/2", "1.0/2", "0/2", "3/2", "1/0"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shard must be i/n"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shares_are_a_balanced_partition_in_the_order_of_the_plan(count: int) -> None:
    settings = Settings.make(
        schedules=["paper", "light", "dense"],
        preset_name="classical",
        levels=["op", "layer", "model"],
        device="cpu",
    )
    groups = plan_groups(settings)
    shares = [Shard(index, count).of(groups) for index in range(1, count + 1)]
    assert sorted(groups.index(group) for share in shares for group in share) == list(range(len(groups)))
    for share in shares:
        positions = [groups.index(group) for group in share]
        assert positions == sorted(positions)
    loads = [sum(group.cost for group in share) for share in shares]
    assert max(loads) - min(loads) <= max(group.cost for group in groups)


def test_costly_groups_are_dealt_evenly_wherever_they_stand() -> None:
    groups = [SimpleNamespace(cost=cost) for cost in [10.0, 1.0] * 6]
    loads = [sum(group.cost for group in Shard(index, 2).of(groups)) for index in (1, 2)]  # type: ignore[arg-type]
    assert loads == [33.0, 33.0]


def test_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert find_ranks() is None
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    found = find_ranks()
    assert found is not None
    assert (found.shard, found.leads) == (Shard(2, 2), False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_ranks() is None
