"""From counts to a time: what each unit of a chip would be busy for, and the range between full overlap and none.

Every figure here is a prediction by a simple model. Units work beside each other, so a launch takes at least as long as
the busiest of them, and hardly longer than all of them one after another. Latency that nothing hides is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..kernel_table import blocks_per_sm
from .chips import Chip
from .compiled import Instructions, registers_of
from .counted import CountedLaunch
from .emulate import Work

SECTOR = 32
MMA_FLOPS = 2 * 16 * 8 * 16
"""Of one m16n8k16."""
# Instructions behind one call of the vocabulary where the SASS is not at hand: its own and those around it.
_EXP_INSTRUCTIONS, _LOG_INSTRUCTIONS = 6, 10
INSIDE_ISSUE = ("alu", "fma", "mufu")
"""Units that an issue slot feeds: their busy time overlaps with it by construction."""


@dataclass(frozen=True)
class Prediction:
    """Predicted times of one launch, or of several one after another. Seconds."""

    kernel: str
    pipes: dict[str, float]
    """Busy time of each unit."""
    low: float
    """All units work beside each other: the largest."""
    high: float
    """One after another: the sum (of those that an issue slot feeds the largest, issue included)."""
    bound: str
    """The unit that takes longest."""
    blocks_per_multiprocessor: int = 0
    warps_per_multiprocessor: int = 0
    waves: float = 0.0
    instructions: Instructions | None = None
    """What the SASS says, where it is known; without it issue, alu and fma are what the vocabulary counts: too low."""


@dataclass(frozen=True)
class Total:
    """A layer or a whole attention core: the sum over its launches, and its floor."""

    title: str
    launches: tuple[Prediction, ...]
    floor_bytes: float
    floor_flops: float

    @property
    def low(self) -> float:
        """Launches run one after another, each with full overlap inside."""
        return sum(p.low for p in self.launches)

    @property
    def high(self) -> float:
        """The same without any overlap."""
        return sum(p.high for p in self.launches)

    @property
    def floor(self) -> float:
        """The larger of what the bytes and what the FLOPs take at the chip's rates."""
        return max(self.floor_bytes, self.floor_flops)

    @property
    def bound(self) -> str:
        """The unit that bounds the launch that takes longest."""
        return max(self.launches, key=lambda p: p.low).bound


def predict(
    work: Work, launch: CountedLaunch, chip: Chip, instructions: Instructions | None = None
) -> Prediction:
    """The time of all of `work`'s window-heads in this launch, from the counts of one."""
    factor = launch.blocks / launch.blocks_run * work.batch
    busy = {name: count * factor for name, count in _cycles(launch, chip, instructions).items()}
    registers = registers_of(launch.kernel, launch.dtype, chip.arch)
    resident = max(1, blocks_per_sm(chip.arch, launch.threads, registers, launch.shared_bytes))
    waves = launch.blocks * work.batch / (resident * chip.multiprocessors)
    tail = math.ceil(waves) / waves
    pipes = {name: cycles * tail / (chip.multiprocessors * chip.clock.value) for name, cycles in busy.items()}
    pipes["l2"] = _l2_bytes(launch) * factor / chip.l2.value
    pipes["dram"] = _dram_bytes(launch) * work.batch / chip.dram.value
    fed = max(pipes[name] for name in ("issue", *INSIDE_ISSUE))
    return Prediction(
        launch.kernel,
        pipes,
        low=max(pipes.values()),
        high=pipes["shared"] + fed + pipes["mma"] + pipes["l2"] + pipes["dram"],
        bound=max(pipes, key=lambda name: pipes[name]),
        blocks_per_multiprocessor=resident,
        warps_per_multiprocessor=resident * -(-launch.threads // 32),
        waves=waves,
        instructions=instructions,
    )


def _cycles(launch: CountedLaunch, chip: Chip, found: Instructions | None) -> dict[str, float]:
    """Cycles of one multiprocessor that the launch's emulated blocks keep each unit busy."""
    n = dict.fromkeys(("wavefronts", "l1_cycles", "shuffle", "reduce", "mma", "vote"), 0) | launch.totals()
    use = found or _of_the_source(n)
    fma, mufu = max(use.fma, n["fma"]), max(use.mufu, n["exp"] + n["log"])
    return {
        # a shuffle gives 32 results a clock, a reduction 16; both go the way of shared memory
        "shared": (n["wavefronts"] + n["l1_cycles"] + n["shuffle"] + 2 * n["reduce"]) / chip.shared.value,
        "issue": use.issue / chip.issue.value,
        "alu": use.alu / chip.alu.value,
        "fma": max(use.imad / chip.imad.value, (fma + use.imad) / chip.fma.value),
        "mufu": mufu / chip.mufu.value,
        "mma": n["mma"] * MMA_FLOPS / chip.mma.value,
    }


def _of_the_source(n: dict[str, int]) -> Instructions:
    """What the vocabulary counts, where the SASS is not known: no integers, and so too few."""
    steps = sum(n.get(name, 0) for name in ("barrier", "syncwarp", "shuffle", "vote", "reduce", "mma"))
    arithmetic = n["fma"] + n["convert"] + _EXP_INSTRUCTIONS * n["exp"] + _LOG_INSTRUCTIONS * n["log"]
    return Instructions(
        issue=arithmetic + n["requests"] + steps,
        alu=0.0,
        fma=n["fma"] + n["convert"],
        imad=0.0,
        mufu=n["exp"] + n["log"],
        explained=0.0,
    )


def _l2_bytes(launch: CountedLaunch) -> float:
    """Plain loads ask L2 once a block, asynchronous copies (past L1) and writes every time."""
    n = launch.totals()
    return SECTOR * (launch.sectors_of_blocks + n.get("async_sectors", 0) + n.get("write_sectors", 0))


def _dram_bytes(launch: CountedLaunch) -> float:
    """Of a whole window-head: what several of the emulated blocks read is read once by all of them."""
    own = launch.bytes_read_once + launch.bytes_written
    return launch.bytes_read_by_many + own * launch.blocks / launch.blocks_run


SPLIT_PRODUCTS = 6
"""Products of bfloat16 parts that make one of float32 (kernels/cuda/split_tile.cuh)."""


def floor_of(work: Work, launches: Sequence[CountedLaunch], chip: Chip) -> tuple[float, float]:
    """Seconds that the problem's bytes and its FLOPs take at least, by the units that its kernels use."""
    tensor = any(launch.totals().get("mma", 0) for launch in launches)
    rate = (chip.tensor_flops if tensor else chip.float32_flops).value
    if tensor and work.dtype == "float32":
        rate /= SPLIT_PRODUCTS
    return work.kernel_bytes() / chip.dram.value, work.kernel_flops() / rate
