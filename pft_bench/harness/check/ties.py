"""Do equal logits keep the smaller key? Asked where the arithmetic is exact, so that only one answer is right."""

from __future__ import annotations

import math

import torch

from ...backends import Backend
from ...reference import Layer, kept_positions
from .oracle import logits
from .result import CheckResult

TOKENS = 100
HEAD_DIM = 3


def tied_layer(topk: int, dtype: torch.dtype, device: torch.device | str, *, sparse: bool) -> Layer:
    """A layer whose q and k are -1, 0 or 1: its logits are small integers, exact in any dtype and summation order."""
    generator = torch.Generator().manual_seed(topk)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-1, 2, shape, generator=generator).to(device, dtype)

    q, k, v = (integers(1, 2, TOKENS, HEAD_DIM) for _ in range(3))
    index = earlier = None
    if sparse:
        index = (
            torch.arange(TOKENS, dtype=torch.int16, device=device).expand(1, 2, TOKENS, TOKENS).contiguous()
        )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        earlier = -torch.randint(0, 2, index.shape, generator=generator).to(device, wide)
    return Layer(q, k, v, None, None, index, earlier, 1.0, 0.0, topk)


def check_ties(backend: Backend, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[CheckResult]:
    """Larger logits first, then smaller keys, for few and for many kept entries.

    Only for backends that promise it: `torch.topk`, and so the `dense` baseline, leaves the order of ties open.
    """
    results = []
    for topk in (1, 7, 16, 33, TOKENS - 1):
        for sparse in (False, True):
            layer = tied_layer(topk, dtype, device, sparse=sparse)
            with torch.no_grad():
                kept = backend.attention_forward(layer)[1]
            exact = kept_positions(logits(layer).value, topk)
            wrong = int((kept.long() != exact).any(-1).sum()) if kept.shape == exact.shape else -1
            step = f"{'sparse' if sparse else 'dense'} {TOKENS}->{topk}"
            detail = f"{wrong} of {exact[..., 0].numel()} rows keep another of several equal entries"
            results.append(
                CheckResult(f"attention ties {step}", math.inf if wrong else 0.0, detail if wrong else "")
            )
    return results
