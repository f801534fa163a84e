"""The `reference` backend: the specification itself, for any device and float dtype."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..common import stages
from ..reference import Layer
from .base import AttentionForward, LayerShape, PlainBackend


class ReferenceBackend(PlainBackend):
    """Slow, readable, differentiable."""

    name = "reference"
    summary = "the specification in plain PyTorch: gathers row by row, slow, any device and float dtype"

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """See `pft_bench.reference.sddmm`."""
        return reference.sddmm(q, k, index)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """See `pft_bench.reference.spmm`."""
        return reference.spmm(a, v, index)

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """See `pft_bench.reference.spmm_transpose`."""
        return reference.spmm_transpose(a, x, index, num_keys)

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """See `pft_bench.reference.attention`."""
        with stages.stage("attention"):
            return reference.attention(layer)

    def attention_work_bytes(self, shape: LayerShape, threads: int) -> int:
        """Unknown: it gathers whatever fits its reading order."""
        raise ValueError(
            "backend must be one whose memory is known (cpu, dense, cuda or triton), got 'reference'"
        )
