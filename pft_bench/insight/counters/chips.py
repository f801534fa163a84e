"""The chips that times are predicted for: what each unit does, who says so, and which figures are doubted."""

from __future__ import annotations

from dataclasses import dataclass

GUIDE = "CUDA C++ Programming Guide, throughput of native arithmetic instructions"
H100_PAPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper"
A100_PAPER = "NVIDIA A100 Tensor Core GPU Architecture whitepaper"
ADA_PAPER = "NVIDIA Ada GPU Architecture whitepaper"
HOPPER_STUDY = "arXiv:2402.13499: on Hopper mma.sync reaches 62.9% of the peak, which is wgmma's"


@dataclass(frozen=True)
class Rate:
    """One rate, where it comes from, and whether it is more than a guess."""

    value: float
    source: str
    doubted: bool = False


@dataclass(frozen=True)
class Chip:
    """Rates are per multiprocessor and clock unless the name says otherwise; those with a value are every chip's."""

    name: str
    title: str
    arch: int
    """Compute capability, 90 for 9.0: limits of a block and of a multiprocessor."""
    multiprocessors: int
    clock: Rate
    """Hz."""
    fma: Rate
    """Warp instructions of float32."""
    mma: Rate
    """FLOP of `mma.sync` on 16-bit inputs with a float32 sum."""
    l2: Rate
    """Bytes a second, of the chip."""
    dram: Rate
    """Bytes a second, of the chip."""
    float32_flops: Rate
    """FLOP a second of the chip: FFMA, as published."""
    tensor_flops: Rate
    """FLOP a second of the chip that `mma.sync` can reach: what a floor may ask for."""
    issue: Rate = Rate(4, "four schedulers, one instruction each a clock")
    """Warp instructions."""
    alu: Rate = Rate(2, f"{GUIDE}: 64 results")
    """Warp instructions of integers, comparisons, logic."""
    imad: Rate = Rate(2, f"{GUIDE}: 64 results")
    """Warp instructions of integer multiply-add."""
    mufu: Rate = Rate(0.5, f"{GUIDE}: 16 results")
    """Warp instructions of exponentials, logarithms, reciprocals."""
    shared: Rate = Rate(
        1, "32 banks of 4 bytes: 128 bytes a clock (CUDA C++ Programming Guide, shared memory)"
    )
    """Wavefronts of shared memory and of L1, which has the same data path."""

    def rates(self) -> dict[str, Rate]:
        """All rates by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Rate)}

    def doubts(self) -> list[str]:
        """Names of the rates that are doubted."""
        return [name for name, rate in self.rates().items() if rate.doubted]


def _hopper(name: str, title: str, dram: Rate) -> Chip:
    return Chip(
        name,
        title,
        90,
        132,
        clock=Rate(
            1.755e9, "between base and boost (1.98 GHz): what a chip keeps up under load", doubted=True
        ),
        fma=Rate(4, f"{GUIDE}: 128 results"),
        mma=Rate(0.629 * 4096, HOPPER_STUDY),
        l2=Rate(5.5e12, "measured by several on PCIe and SXM cards; nothing is published", doubted=True),
        dram=dram,
        float32_flops=Rate(66.9e12, H100_PAPER),
        tensor_flops=Rate(0.629 * 989.4e12, f"{H100_PAPER}: 989.4 TFLOP/s; {HOPPER_STUDY}"),
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _hopper("h100", "H100 SXM", Rate(3.35e12, H100_PAPER)),
        _hopper("h200", "H200", Rate(4.8e12, "NVIDIA H200 data sheet")),
        Chip(
            "a100",
            "A100 SXM 80 GB",
            80,
            108,
            clock=Rate(1.41e9, f"{A100_PAPER}: boost"),
            fma=Rate(2, f"{GUIDE}: 64 results"),
            mma=Rate(2048, f"{A100_PAPER}: 1024 FMA"),
            l2=Rate(5120 * 1.41e9, f"{A100_PAPER}: 5120 bytes a clock; less is reached", doubted=True),
            dram=Rate(2.039e12, "NVIDIA A100 80 GB data sheet"),
            float32_flops=Rate(19.5e12, A100_PAPER),
            tensor_flops=Rate(312e12, A100_PAPER),
        ),
        Chip(
            "rtx4090",
            "RTX 4090",
            89,
            128,
            clock=Rate(2.52e9, f"{ADA_PAPER}: boost"),
            fma=Rate(4, f"{GUIDE}: 128 results, half of them by units that integers use too", doubted=True),
            mma=Rate(512, f"{ADA_PAPER}: 165.2 TFLOP/s with float32 sums"),
            l2=Rate(5.0e12, "measured by several; nothing is published", doubted=True),
            dram=Rate(1.008e12, ADA_PAPER),
            float32_flops=Rate(82.6e12, ADA_PAPER),
            tensor_flops=Rate(165.2e12, ADA_PAPER),
        ),
    )
}


def chip_named(name: str) -> Chip:
    """The chip of that name; ValueError names those that are known."""
    if name not in CHIPS:
        raise ValueError(f"--chip must be one of {', '.join(CHIPS)}, got {name!r}")
    return CHIPS[name]
