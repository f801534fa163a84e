"""From counts to times: units, overlap, waves, floors; and the rates of the chips."""

from __future__ import annotations

import pytest

from pft_bench.insight.counters.chips import CHIPS, chip_named
from pft_bench.insight.counters.compiled import Instructions, registers_of
from pft_bench.insight.counters.counted import CountedLaunch
from pft_bench.insight.counters.emulate import Work
from pft_bench.insight.counters.model import floor_of, predict

H100 = CHIPS["h100"]
WORK = Work("attention", 132, 1, 1024, 40, 256, 256, "float32")
NOTHING = {"fma": 0, "exp": 0, "log": 0, "convert": 0}
CYCLE = 1 / H100.clock.value


def launch(blocks: int = 1, blocks_run: int = 1, sectors_of_blocks: int = 0, **counts: int) -> CountedLaunch:
    """One block a window-head that asks for all of a multiprocessor's shared memory."""
    summed = {"requests": 0, **NOTHING} | counts
    return CountedLaunch(
        "attention_forward_sparse", "float32", blocks, blocks_run, 320, 10, 200 << 10, 0, 0, 0,
        bytes_read_once=1000, bytes_read_by_many=500, bytes_written=100, sectors_of_blocks=sectors_of_blocks,
        ops=NOTHING, summed=summed,
    )  # fmt: skip


def test_the_busiest_unit_bounds_and_the_range_ends_at_the_sum() -> None:
    """132 window-heads on 132 multiprocessors: one block each, so that cycles are the block's own."""
    p = predict(
        WORK,
        launch(wavefronts=8000, l1_cycles=1000, shuffle=500, reduce=250, mma=200, fma=4000, exp=100),
        H100,
    )
    assert p.pipes["shared"] == pytest.approx(10000 * CYCLE)
    assert p.pipes["mma"] == pytest.approx(200 * 4096 / (0.629 * 4096) * CYCLE)
    assert p.pipes["mufu"] == pytest.approx(200 * CYCLE)
    assert (p.bound, p.waves, p.blocks_per_multiprocessor, p.warps_per_multiprocessor) == (
        "shared",
        1.0,
        1,
        10,
    )
    assert p.low == p.pipes["shared"]
    fed = max(p.pipes[name] for name in ("issue", "alu", "fma", "mufu"))
    assert p.high == pytest.approx(p.low + fed + p.pipes["mma"] + p.pipes["l2"] + p.pipes["dram"])


def test_instructions_of_the_sass_take_the_place_of_those_of_the_source() -> None:
    known = Instructions(issue=40000, alu=10000, fma=6000, imad=2000, mufu=300, explained=1.0)
    p = predict(WORK, launch(fma=5000, exp=100), H100, known)
    assert p.pipes["issue"] == pytest.approx(10000 * CYCLE)
    assert p.pipes["alu"] == pytest.approx(5000 * CYCLE)
    assert p.pipes["fma"] == pytest.approx(2000 * CYCLE)  # 6000 and 2000 at four a clock, 2000 at two
    assert p.pipes["mufu"] == pytest.approx(600 * CYCLE)
    assert p.bound == "issue"


def test_a_last_wave_that_is_not_full_takes_as_long_as_one_that_is() -> None:
    whole = predict(WORK, launch(wavefronts=1000), H100)
    more = predict(Work("attention", 133, 1, 1024, 40, 256, 256, "float32"), launch(wavefronts=1000), H100)
    assert more.pipes["shared"] == pytest.approx(2 * whole.pipes["shared"])
    assert more.waves == pytest.approx(133 / 132)


def test_blocks_that_were_not_emulated_are_scaled_but_what_all_read_is_not() -> None:
    some = predict(WORK, launch(blocks=8, blocks_run=2, wavefronts=1000, sectors_of_blocks=10), H100)
    assert some.pipes["dram"] == pytest.approx(132 * (500 + 1100 * 4) / 3.35e12)
    assert some.pipes["l2"] == pytest.approx(132 * 10 * 32 * 4 / 5.5e12)
    assert some.pipes["shared"] == pytest.approx(4000 * CYCLE)


def test_floors_ask_for_what_the_instructions_in_use_can_reach() -> None:
    """`mma.sync` reaches 62.9% of a Hopper's peak; without it the kernel has FFMA alone."""
    dense = Work("attention", 240, 6, 1024, 40, 1024, 1024, "float16")
    by_bytes, by_flops = floor_of(dense, [launch(mma=1)], H100)
    assert by_bytes * 1e3 == pytest.approx(0.141, abs=0.001)
    assert by_flops * 1e3 == pytest.approx(241.6 / (989.4 * 0.629), abs=0.001)
    assert floor_of(dense, [launch()], H100)[1] * 1e3 == pytest.approx(241.6 / 66.9, abs=0.01)


def test_every_rate_has_a_source_and_chips_differ_where_they_should() -> None:
    for chip in CHIPS.values():
        assert all(rate.value > 0 and len(rate.source) > 10 for rate in chip.rates().values())
        assert "l2" in chip.doubts()
        # what is published as FLOP/s of the chip is what its units do a clock, up to the clock
        per_clock = chip.fma.value * 64 * chip.multiprocessors
        assert 1.3e9 < chip.float32_flops.value / per_clock < 2.6e9
        tensor_clock = chip.tensor_flops.value / (chip.mma.value * chip.multiprocessors)
        assert 1.3e9 < tensor_clock < 2.6e9
        assert registers_of("attention_forward_dense", "float16", chip.arch) > 64
    assert CHIPS["h200"].dram.value > H100.dram.value
    assert CHIPS["h200"].mma == H100.mma
    assert registers_of("no_such_kernel", "float32", 90) == 0


def test_an_unknown_chip_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="--chip must be one of h100, h200, a100, rtx4090, got 'v100'"):
        chip_named("v100")
