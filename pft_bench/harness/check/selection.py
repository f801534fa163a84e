"""Is what a kernel kept the top K, within what its logits can be known?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference import Layer
from . import oracle
from .result import CheckResult


@dataclass(frozen=True)
class Differences:
    """Entries of a kernel's selection that the float64 top K does not contain."""

    ties: int
    """Within the bound of both logits: either choice is right."""
    wrong: int


def check_selection(layer: Layer, new_index: Tensor, queries: Tensor | None = None) -> list[CheckResult]:
    """Check the kept index [W, H, N, K]: ascending, a subset of the candidates, and the largest of them.

    `queries` [N] are the tokens whose rows the layer holds, where it holds a few only.

    Every kept entry must be at least every dropped entry, less the bounds of both. Differences from the exact top K
    are counted as ties (within the bound) or wrong.
    """
    found = structure(layer, new_index)
    if not found.passed:
        return [found]
    parts = oracle.window_heads(layer)
    compared = [compare(oracle.logits(part, queries), new_index[at], layer.topk) for at, part in parts]
    return [found, summary(new_index, compared)]


Compared = tuple[float, Differences]
"""The worst inversion in units of the two logits' bounds, and the differences from the exact top K."""


def summary(new_index: Tensor, compared: Sequence[Compared]) -> CheckResult:
    """One result of all window-heads."""
    worst = max((ratio for ratio, _ in compared), default=0.0)
    ties, wrong = sum(found.ties for _, found in compared), sum(found.wrong for _, found in compared)
    detail = f"{ties} ties, {wrong} wrong of {new_index.numel()}"
    return CheckResult("attention selection", worst, detail)


def structure(layer: Layer, new_index: Tensor) -> CheckResult:
    """Whether the kept index is ascending and a subset of the candidates."""
    name = "attention index"
    index = new_index.long()
    keys = layer.k.shape[2]
    if index.numel() == 0:
        return CheckResult(name, 0.0, "empty")
    if int(index.min()) < 0 or int(index.max()) >= keys:
        return CheckResult(name, math.inf, f"entries outside 0..{keys - 1}")
    if index.shape[-1] > 1 and not bool((index[..., 1:] > index[..., :-1]).all()):
        return CheckResult(name, math.inf, "not strictly ascending")
    if layer.index is not None:
        offered = torch.zeros((*index.shape[:-1], keys), dtype=torch.bool, device=index.device)
        offered.scatter_(-1, layer.index.long(), True)
        if not bool(offered.gather(-1, index).all()):
            return CheckResult(name, math.inf, "keeps entries that were no candidates")
    return CheckResult(name, 0.0)


def compare(z: oracle.Bounded, new_index: Tensor, topk: int) -> Compared:
    """What a kernel kept against the logits in float64."""
    kept = new_index.long()
    is_kept = torch.zeros_like(z.value, dtype=torch.bool).scatter_(-1, kept, True)
    candidate = z.value.isfinite()
    # the lowest kept entry, as high as it may be, against the highest dropped entry, as low as it may be
    low, low_at = (z.value + z.bound).masked_fill(~is_kept, math.inf).min(-1)
    high, high_at = (z.value - z.bound).masked_fill(is_kept | ~candidate, -math.inf).max(-1)
    bounds = z.bound.gather(-1, low_at.unsqueeze(-1)) + z.bound.gather(-1, high_at.unsqueeze(-1))
    bounds = bounds.squeeze(-1)
    inversion = (high - low + bounds).clamp_min(0) / bounds.clamp_min(torch.finfo(torch.float64).tiny)
    worst = float(inversion.nan_to_num(nan=0.0, neginf=0.0).max())
    # Where every kept entry is above every dropped one, whatever the bounds, it is the top K: only the rest is sorted.
    least = z.value.masked_fill(~is_kept, math.inf).amin(-1)
    unsure = ~(least > z.value.masked_fill(is_kept, -math.inf).amax(-1)) | (kept.shape[-1] != topk)
    value, bound, chosen = z.value[unsure], z.bound[unsure], is_kept[unsure]
    exact = value.sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    extra = chosen & ~torch.zeros_like(chosen).scatter_(-1, exact, True)
    wrong = extra & (value + bound < high[unsure].unsqueeze(-1))
    return worst, Differences(int(extra.sum() - wrong.sum()), int(wrong.sum()))
