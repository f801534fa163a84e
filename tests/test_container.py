"""Limits of a container, read from a planted /proc and /sys: both versions, nested groups, and what has no limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pft_bench.common import container
from pft_bench.harness.sweep.ranks import Ranks
from pft_bench.model import tiles

V2 = "0::/docker/a1\n"
V1 = "5:memory:/docker/a1\n4:cpu,cpuacct:/docker/a1\n1:name=systemd:/docker/a1\n0::/\n"


def cgroup(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root whose process is in `groups`; `files` lie under its /sys/fs/cgroup."""
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": groups, **named}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


CPU = {
    "v2, a container of its own": ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
    "v2, a group below": (V2, {"docker/a1/cpu.max": "200000 100000"}, 2.0),
    "v2, the group around limits more": (
        V2,
        {"docker/a1/cpu.max": "400000 100000", "docker/cpu.max": "50000 100000"},
        0.5,
    ),
    "v2, no limit": (V2, {"docker/a1/cpu.max": "max 100000"}, None),
    "v2, the host's path, the container's files": (V2, {"cpu.max": "300000 100000"}, 3.0),
    "v2, seen from another name space": ("0::/../../x\n", {"cpu.max": "300000 100000"}, 3.0),
    "v1": (
        V1,
        {
            "cpu,cpuacct/docker/a1/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/docker/a1/cpu.cfs_period_us": "100000",
        },
        2.5,
    ),
    "v1, the container's files at the top of cpu": (
        V1,
        {"cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "10000"},
        2.0,
    ),
    "v1, no limit": (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "v2 beside v1": ("1:name=systemd:/\n0::/a\n", {"unified/a/cpu.max": "100000 100000"}, 1.0),
    "no files": (V2, {}, None),
    "not what a kernel writes": (V2, {"cpu.max": "many 0", "docker/cpu.max": ""}, None),
}


@pytest.mark.parametrize(("groups", "files", "quota"), CPU.values(), ids=CPU.keys())
def test_cpu_quota(tmp_path: Path, groups: str, files: dict[str, str], quota: float | None) -> None:
    assert container.cpu_quota(cgroup(tmp_path, groups, files)) == quota


def test_no_proc_is_no_limit(tmp_path: Path) -> None:
    assert container.cpu_quota(tmp_path) is None
    assert container.memory_limit(tmp_path) is None
    assert container.memory_left(tmp_path) is None


GIB = 1 << 30
MEMORY = {
    "v2": (
        V2,
        {
            "docker/a1/memory.max": str(4 * GIB),
            "docker/a1/memory.current": str(3 * GIB),
            "docker/a1/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}",
        },
        (4 * GIB, 2 * GIB),
    ),
    "v1": (
        V1,
        {
            "memory/memory.limit_in_bytes": str(2 * GIB),
            "memory/memory.usage_in_bytes": str(GIB),
            "memory/memory.stat": "total_inactive_file 4096",
        },
        (2 * GIB, GIB + 4096),
    ),
    "v1, no limit": (
        V1,
        {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"},
        (None, None),
    ),
    "v2, no limit": (V2, {"memory.max": "max", "memory.current": "1"}, (None, None)),
}


@pytest.mark.parametrize(("groups", "files", "expected"), MEMORY.values(), ids=MEMORY.keys())
def test_memory(
    tmp_path: Path, groups: str, files: dict[str, str], expected: tuple[int | None, int | None]
) -> None:
    root = cgroup(tmp_path, groups, files)
    assert (container.memory_limit(root), container.memory_left(root)) == expected


def test_an_image_may_take_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup(tmp_path, "0::/\n", {"memory.max": "5000000", "memory.current": "2000000"})
    before = tiles.available_bytes()
    monkeypatch.setattr(container, "ROOT", root)
    assert tiles.available_bytes() == 3_000_000 < before


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Half a core more than one, on a machine of 64."""
    monkeypatch.setattr(container, "ROOT", cgroup(tmp_path, "0::/\n", {"cpu.max": "150000 100000"}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return 1.5


def test_threads_follow_the_quota(quota: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIPS_CONCURRENCY", raising=False)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    assert container.usable_cores() == 2
    assert container.check_threads(0) == 2
    assert container.check_threads(2) == 2
    with pytest.raises(
        ValueError, match=r"threads must be at most 2 here, whose CPU quota is 1.5 cores, got 3"
    ):
        container.check_threads(3)
    container.respect_quota()
    assert chosen == [2]
    assert os.environ["VIPS_CONCURRENCY"] == "2"


def test_without_a_quota_the_cores_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert container.usable_cores() == 3
    assert container.check_threads(12) == 12
    with pytest.raises(ValueError, match="threads must be at most 12 here, got 13"):
        container.check_threads(13)
    with pytest.raises(ValueError, match="threads must be at least 0, got -1"):
        container.check_threads(-1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("nothing limits this process"))
    container.respect_quota()


def test_ranks_share_the_quota(quota: float, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: taken.append(cores))
    assert not Ranks(0, 2, 0, 2).take_cores(2)
    assert Ranks(1, 2, 1, 2).take_cores(1)
    assert taken == [[1]]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert container.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
