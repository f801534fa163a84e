"""A kernel of your own, from nothing to a verdict. This file is the plug-in:

    pft-bench check --plugin examples/my_kernel.py --backend batched
    pft-bench run --plugin examples/my_kernel.py --backend batched --level op --sched 64 --preset light

The first command holds it against masked dense attention in float64. The second checks it again on its own inputs,
then times it beside the dense baseline in interleaved rounds. What the class does not have (spmm_transpose, layers)
becomes a row that says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pft_bench.backends import Backend, empty, register


@register
class BatchedProducts(Backend):
    """The two sparse products by gathering whole rows, then one batched product: short, and hungry for memory."""

    name = "batched"
    summary = "gathered rows and batched products; an example"
    dtypes = frozenset({torch.float32, torch.float64})
    devices = frozenset({"cpu", "cuda"})

    def available(self) -> str | None:
        """None: it runs wherever PyTorch does. Otherwise: why not, and what to do."""
        return None

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """q [B, N, D], k [B, M, D] at index [B, N, K] -> logits [B, N, K]."""
        out = empty(index.shape, q.dtype, q.device)  # checks fill it with NaN beforehand, so that a gap shows
        torch.matmul(rows(k, index), q.unsqueeze(-1), out=out.unsqueeze(-1))
        return out

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Weights a [B, N, K] times the rows of v [B, M, D] at index [B, N, K] -> [B, N, D]."""
        out = empty((*index.shape[:2], v.shape[2]), v.dtype, v.device)
        torch.matmul(a.unsqueeze(-2), rows(v, index), out=out.unsqueeze(-2))
        return out


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of x [B, M, D] at index [B, N, K] -> [B, N, K, D]."""
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, index.long()]
