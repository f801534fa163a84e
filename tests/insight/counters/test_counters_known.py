"""Kernels whose counts are known by hand (kernels/emulator/known.cu): the counting emulator meets each exactly."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest

count = pytest.importorskip("pft_bench._cuda_count")


class Access(NamedTuple):
    """What all requests of one kind, space and width must add up to."""

    requests: int
    lanes: int
    wavefronts: int = 0
    unmerged: int = 0
    conflict_free: int = 0
    sectors: int = 0
    sectors_ideal: int = 0


def launch(name: str, stride: int = 1) -> dict[str, Any]:
    count.configure()
    count.take_counts()
    count.run_known(name, stride)
    (counted,) = count.take_counts()
    return counted


def accesses(counted: dict[str, Any], what: str) -> Access:
    """`what` is kind, space and bytes."""
    sums: Counter[str] = Counter()
    for site in counted["sites"]:
        if f"{site['kind']} {site['space']} {site['bytes']}" == what:
            sums.update({name: site[name] for name in Access._fields})
    return Access(*(sums[name] for name in Access._fields))


def shared(
    requests: int, lanes: int, wavefronts: int, conflict_free: int, unmerged: int | None = None
) -> Access:
    return Access(requests, lanes, wavefronts, wavefronts if unmerged is None else unmerged, conflict_free)


def in_global(requests: int, lanes: int, sectors: int, ideal: int) -> Access:
    return Access(requests, lanes, sectors=sectors, sectors_ideal=ideal)


ACCESSES = {
    # a word a lane: as many wavefronts as words meet in a bank
    ("shared_4", 1, "load shared 4"): shared(1, 32, 1, 1),
    ("shared_4", 33, "load shared 4"): shared(1, 32, 1, 1),
    ("shared_4", 2, "load shared 4"): shared(1, 32, 2, 1),
    ("shared_4", 8, "load shared 4"): shared(1, 32, 8, 1),
    ("shared_4", 32, "load shared 4"): shared(1, 32, 32, 1),
    ("shared_4", 0, "load shared 4"): shared(1, 32, 1, 1),  # all lanes the same word: a broadcast
    # half words: two lanes share a word
    ("shared_2", 1, "store shared 2"): shared(1, 32, 1, 1),
    ("shared_2", 4, "store shared 2"): shared(1, 32, 2, 1),
    # 8 bytes a lane: half-warp by half-warp
    ("shared_8", 1, "load shared 8"): shared(1, 32, 2, 2),
    ("shared_8", 2, "load shared 8"): shared(1, 32, 4, 2),
    # two lanes read the same 8 bytes: 16 different ones fill one wavefront, if the half-warps may share it
    ("shared_8_pairs", 1, "load shared 8"): shared(1, 32, 2, 2),
    ("shared_8_same", 1, "load shared 8"): shared(1, 32, 1, 1, unmerged=2),
    ("shared_8_same", 2, "load shared 8"): shared(1, 32, 1, 1, unmerged=2),
    ("shared_8_same", 4, "load shared 8"): shared(1, 32, 2, 2),  # lane ^ 4 agrees: no rule for that
    # 16 bytes a lane: quarter-warp by quarter-warp; the odd unit of a pitch keeps them free of conflicts
    ("shared_16", 1, "load shared 16"): shared(1, 32, 4, 4),
    ("shared_16", 5, "load shared 16"): shared(1, 32, 4, 4),
    ("shared_16", 8, "load shared 16"): shared(1, 32, 32, 4),
    ("shared_16", 0, "load shared 16"): shared(1, 32, 2, 2, unmerged=4),
    ("shared_16_store", 1, "store shared 16"): shared(1, 32, 4, 4),
    ("matrix", 1, "ldmatrix shared 16"): shared(1, 32, 4, 4),
    ("matrix", 5, "ldmatrix shared 16"): shared(1, 32, 4, 4),
    ("matrix", 8, "ldmatrix shared 16"): shared(1, 32, 32, 4),
    # 32-byte sectors of global memory
    ("global_4", 1, "load global 4"): in_global(1, 32, 4, 4),
    ("global_4", 0, "load global 4"): in_global(1, 32, 1, 1),
    ("global_4", 2, "load global 4"): in_global(1, 32, 8, 4),
    ("global_4", 8, "load global 4"): in_global(1, 32, 32, 4),
    ("global_4_unaligned", 1, "load global 4"): in_global(1, 32, 5, 4),
    ("global_16", 1, "load global 16"): in_global(1, 32, 16, 16),
    ("global_16", 2, "load global 16"): in_global(1, 32, 32, 16),
    ("copying", 1, "async global 16"): in_global(1, 32, 16, 16),
    ("copying", 1, "async shared 16"): shared(1, 32, 4, 4),
    # atomics: lanes at one word go one after another
    ("joining", 0, "atomic shared 4"): shared(1, 32, 32, 1),
    ("joining", 1, "atomic shared 4"): shared(1, 32, 1, 1),
    ("joining", 2, "atomic shared 4"): shared(1, 32, 2, 1),
    # which lanes meet in a request
    ("branch", 1, "store shared 4"): shared(2, 32, 2, 2),
    ("uneven_loop", 1, "store shared 4"): shared(4, 32 + 24 + 16 + 8, 4, 4),
    ("alternating", 1, "store shared 4"): shared(8, 4 * 32, 8, 8),
    ("nested_loops", 1, "store shared 4"): shared(4, 32 + 16 + 32 + 16, 4, 4),
    # four turns with 32, 24, 16, 8 lanes; 8 leave in each of the first three; the others go on to the turn's end
    ("leaving", 1, "store shared 4"): shared(4 + 3 + 4, 80 + 24 + 56, 11, 11),
    ("called_twice", 1, "store shared 4"): shared(2, 32, 2, 2),
    ("early_exit", 1, "load global 4"): in_global(1, 20, 3, 3),
}


@pytest.mark.parametrize(("name", "stride", "what"), ACCESSES)
def test_accesses(name: str, stride: int, what: str) -> None:
    counted = launch(name, stride)
    assert accesses(counted, what) == ACCESSES[name, stride, what]
    assert counted["doubtful"] == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("products", {"mma": 2 * 3}),
        ("talking", {"shuffle": 2 * 5, "vote": 2 * 4, "reduce": 2 * 3, "syncwarp": 2 * 2, "barrier": 2}),
        ("traffic", {"syncwarp": 3}),
        ("shared_4", {}),
    ],
)
def test_instructions_of_a_whole_warp(name: str, expected: dict[str, int]) -> None:
    """Two warps (three blocks of one in `traffic`), each as often as its source says; and each at its own place."""
    counted: Counter[str] = Counter()
    for _, step, times in launch(name)["steps"]:
        counted[step] += times
    assert counted == Counter(expected)


def test_arithmetic_is_counted_by_warp() -> None:
    """Two warps do three multiply-adds, a logarithm and two conversions; in one of them 8 lanes an exponential."""
    assert launch("arithmetic")["ops"] == {"fma": 6, "exp": 1, "log": 2, "convert": 4}


def test_bytes_of_a_launch_are_counted_once() -> None:
    """Three blocks: 128 bytes that all read, 128 that each writes and reads again, which then come from L2."""
    counted = launch("traffic")
    assert counted["bytes_read_by_many"] == 128
    assert counted["bytes_read_once"] == 0
    assert counted["bytes_written"] == 3 * 128
    assert counted["sectors_of_blocks"] == 3 * (4 + 4)
    assert (counted["blocks"], counted["blocks_run"], counted["warps"]) == (3, 3, 3)


def test_sums_do_not_depend_on_the_order_of_lanes() -> None:
    first = [accesses(launch(name, stride), what) for name, stride, what in ACCESSES]
    assert first == [accesses(launch(name, stride), what) for name, stride, what in ACCESSES]


def test_ways_that_wait_too_little_are_doubted_not_miscounted_in_silence() -> None:
    """Walked at once, before the launch has shown all its branches, some meeting points are guesses; it says so."""
    from pft_bench.insight.counters import CHIPS, Work
    from pft_bench.insight.counters.emulate import count_launches

    work = Work("attention", 1, 2, 64, 40, 32, 16, "float32")
    (whole,) = count_launches(work, CHIPS["h100"], window_heads=None, stride=1)
    (hasty,) = count_launches(work, CHIPS["h100"], window_heads=None, stride=1, most_events=0)
    assert whole.doubtful == 0
    assert hasty.requests == whole.requests or hasty.doubtful > 0


def test_a_launch_of_which_a_part_runs_counts_that_part() -> None:
    count.configure(parts=3)
    count.take_counts()
    count.run_known("traffic")
    (counted,) = count.take_counts()
    assert (counted["blocks"], counted["blocks_run"], counted["warps"]) == (3, 1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        count.configure(stride=0)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(count.EmulatorError, match="no kernel with known counts is called nothing"):
        count.run_known("nothing")
    assert {name for name, _, _ in ACCESSES} <= set(count.known_kernels())
