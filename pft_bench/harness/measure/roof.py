"""What this device reaches on the two simplest jobs: the roof that kernels are drawn under.

The compute roof is the rate of a large matrix product, the memory roof that of a large copy, both by torch on the
run's threads. They are what can be reached in practice, not the data sheet's peaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MATRIX_SIDE = 1536
COPY_BYTES = 256 << 20
"""Larger than the caches, so that the copy runs from memory."""

LONGEST_S = 0.25
"""A product that takes longer is measured at half the side: a processor without instructions for 16 bits needs ten
seconds for the largest."""

FASTER = 1.2
"""How many times the rate of 16 bits that of float32 must be to count as higher: two trials of one may differ."""

TRIALS = 5

ONE_THREAD_TRIALS = 3
MARGIN, MARGIN_OF_OLD = 0.5, 2.0
"""How much higher than measured the roof of arithmetic may lie. Older versions had no second look at it, and committed
runs whose start was disturbed have honest kernels at 2.2 times their roof."""


@dataclass(frozen=True)
class Roof:
    """Measured rates of one device, dtype and number of threads."""

    flops_per_s: float
    bytes_per_s: float
    method: str = "best of 5: matrix product of side 1536, copy of 256 MiB"
    """How they were measured; older versions wrote nothing else than this."""

    dtype: str | None = None
    """In what the product was computed; None where older versions measured it."""

    ceiling_flops_per_s: float | None = None
    """The higher of the roof and of what one thread reached, times their number: a neighbour that takes one processor
    halves the roof of two threads, hardly ever that of one. None where older versions measured it."""

    def slower(self, dtype: str) -> str | None:
        """Why speed-ups in a dtype of 16 bits say little, in words; None where PyTorch is not slower in it."""
        if self.dtype in (None, dtype):
            return None
        return (
            f"PyTorch multiplies more slowly in {dtype} than in {self.dtype} on this processor, and so does the "
            f"baseline: before a speed-up counts, hold its latency against that of a run in {self.dtype}"
        )

    def beyond(self, flops: int | None, moved_bytes: int | None, seconds: float) -> str | None:
        """Why a time cannot be, in words; None where it can.

        Arithmetic has one roof, wherever the data lies. Bytes have one only where they fit in no cache: below the size
        of the copy that measured it, a kernel may find them nearer than memory.
        """
        old = self.ceiling_flops_per_s is None
        limits = [
            (
                "FLOP/s",
                flops,
                self.ceiling_flops_per_s or self.flops_per_s,
                "no cache makes arithmetic faster",
            )
        ]
        if moved_bytes is not None and moved_bytes >= COPY_BYTES:
            limits.append(("byte/s", moved_bytes, self.bytes_per_s, "this much fits in no cache"))
        margin = MARGIN_OF_OLD if old else MARGIN
        for unit, count, roof, why in limits:
            if count and count > seconds * roof * (1 + margin):
                rate = count / seconds
                return (
                    f"{rate:.3g} {unit} are {rate / roof:.3g} times the roof of the same run ({roof:.3g} {unit}, "
                    f"uncertain by {margin:.0%}), and {why}: it cannot have done this work"
                )
        return None

    def floor_s(self, flops: int, moved_bytes: int) -> float:
        """The least time for this work: the longer of computing and moving."""
        return max(flops / self.flops_per_s, moved_bytes / self.bytes_per_s)


def measure_roof(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Roof:
    """Measure both roofs, in float32 where no dtype is given; takes about a second.

    On a CPU, 16 bits have the roof of float32 where that is higher: a kernel may convert what it reads.
    """
    import torch

    device, dtype = torch.device(device), dtype or torch.float32
    rate, ceiling, side = _measure_product(device, dtype)
    if device.type == "cpu" and dtype.itemsize == 2:
        wide = _measure_product(device, torch.float32)
        if wide[0] > FASTER * rate:
            (rate, ceiling, side), dtype = wide, torch.float32
    name = str(dtype).removeprefix("torch.")
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    method = f"best of {TRIALS}: matrix product of side {side} in {name}, copy of {COPY_BYTES >> 20} MiB"
    return Roof(rate, 2 * COPY_BYTES / copy_s, method, name, ceiling)


def _measure_product(device: torch.device, dtype: torch.dtype) -> tuple[float, float, int]:
    """FLOP/s of a matrix product, the ceiling of that rate (`Roof`), and the side of the matrices."""
    import torch

    largest = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device).to(dtype)

    def product(side: int) -> Callable[[], torch.Tensor]:
        square = largest[:side, :side].contiguous()
        return lambda: square @ square

    side = MATRIX_SIDE // 8 if device.type == "cpu" else MATRIX_SIDE
    while side < MATRIX_SIDE and 8 * _best_s(product(side), device, 1) < LONGEST_S:
        side *= 2
    call, flops = product(side), 2 * side**3
    rate = flops / _best_s(call, device)
    ceiling = max(rate, _one_thread(call, flops) if device.type == "cpu" else 0.0)
    return rate, ceiling, side


GAIN_SHAPE = (1024, 240, 720)
"""Tokens, inputs and outputs of the projection to q, k and v of one window of the classical model."""
SIXTEEN_BITS = ("bfloat16", "float16")


def sixteen_bit_gains() -> dict[str, float]:
    """How many times as fast as in float32 this CPU computes a projection in each dtype of 16 bits, measured now.

    On one thread, by its own time, so that what else runs counts little. The list of instructions does not tell: a
    processor with AVX512_BF16 may be slower with them than without.
    """
    import torch

    tokens, inputs, outputs = GAIN_SHAPE
    left, right = torch.randn(tokens, inputs), torch.randn(inputs, outputs)
    kinds = {name: getattr(torch, name) for name in ("float32", *SIXTEEN_BITS)}
    operands = {name: (left.to(kind), right.to(kind)) for name, kind in kinds.items()}
    best = dict.fromkeys(operands, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2 * TRIALS):
            for name, (a, b) in operands.items():
                if 4 * best["float32"] < best[name] < float("inf"):
                    continue  # emulated: it would be waited for, and no second look makes it fast
                a @ b  # brings the data to the caches, and the first time makes the kernel
                start = time.thread_time()
                a @ b
                best[name] = min(best[name], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: best["float32"] / best[name] for name in SIXTEEN_BITS}


def _one_thread(call: Callable[[], object], flops: int) -> float:
    """The rate of one thread, times the number of threads in use."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * flops / _best_s(call, torch.device("cpu"), ONE_THREAD_TRIALS)
    finally:
        torch.set_num_threads(threads)


def _best_s(call: Callable[[], object], device: torch.device, trials: int = TRIALS) -> float:
    """The shortest of a few trials: a roof is a maximum, and noise only lengthens."""
    call()
    times = []
    for _ in range(trials):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
