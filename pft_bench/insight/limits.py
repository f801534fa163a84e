"""How large an input each implementation can take before a number in it overflows."""

from __future__ import annotations

from dataclasses import dataclass

from ..model import PFTConfig

INT32_OFFSETS = 2**31
GRID_Z = 65535
"""CUDA's limit of the third grid dimension, which the published kernels use for window-heads."""


@dataclass(frozen=True)
class Limit:
    """Something that overflows: from how many window-heads on, and at which input (low-resolution pixels) that is."""

    what: str
    window_heads: int
    pixels: int


def published_limits(config: PFTConfig) -> list[Limit]:
    """Limits of the published CUDA extension for this model, the tightest first.

    Its kernels index [B, N, K] with 32-bit offsets, so B*N*K must stay below 2^31: 8192 window-heads at K = 256 and
    N = 1024. Window-heads are the third grid dimension. Chains of dense layers go through PyTorch and do not count.
    """
    area, heads = config.window_size**2, config.num_heads
    sparse = [k for k in config.num_topk if k < area]
    found = []
    if sparse:
        most = max(sparse)
        found.append((f"32-bit offset into [B, {area}, {most}]", INT32_OFFSETS // (area * most)))
        found.append(("grid.z, one window-head each", GRID_Z + 1))
    limits = [Limit(what, count, -(-count // heads) * area) for what, count in found]
    return sorted(limits, key=lambda limit: limit.window_heads)
