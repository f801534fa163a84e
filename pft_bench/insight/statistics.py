"""Attention on a real image: is what a layer dropped really not needed any more?

The paper's observation is that tokens with little attention in one layer get little in the next ones, so that dropping
them costs nothing (arXiv 2503.20337, section 3.2). Here the dropped entries are kept on the side: each layer's own
logits over all keys are computed as well, accumulated along its chain, and compared with what the model carried on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.dense import dense_logits
from ..ops import observe_layers
from ..reference import Layer

Arguments = tuple[object, ...]


@dataclass(frozen=True)
class LayerStatistics:
    """One layer, means over rows. Shares are in 0..1; None where the layer has no such number.

    `kept_mass` is the attention of the kept among the candidates and `kept_mass_low` its 5% quantile.
    `missed_mass` is the attention outside the candidates had nothing ever been dropped, `came_back` the share of the
    top K of that undropped chain that the layer could not choose because they had been dropped before.
    `own_overlap` is the share of the top K of this layer's own logits that are also among the top K of the own logits
    of the layer before in the chain; two random sets of K share `chance`.
    """

    layer: int
    chain: int
    candidates: int
    kept: int
    kept_mass: float
    kept_mass_low: float
    missed_mass: float
    came_back: float
    own_overlap: float | None
    chance: float


class _Chain:
    """Accumulated logits over all keys [W, H, N, M], as if nothing were dropped, and the last layer's own."""

    def __init__(self) -> None:
        self.full: Tensor | None = None
        self.own: Tensor | None = None


def collect(
    call: object, chains: Sequence[int], *, strips: int = 1, windows: int = 4
) -> list[LayerStatistics]:
    """Statistics of every layer that `call()` runs.

    Args:
        call: runs the model once.
        chains: the chain of each layer (`PFTConfig.chains`).
        strips: how many strips the model cuts its input into; the first one is looked at.
        windows: at most so many windows are looked at (an N x N map is needed for each head of each).
    """
    assert callable(call)
    found: list[LayerStatistics] = []
    kept_on_the_side = {chain: _Chain() for chain in set(chains)}
    seen = 0

    def observe(given: Layer) -> None:
        nonlocal seen
        number, strip = divmod(seen, strips)
        seen += 1
        if strip == 0:
            layer = _first_windows(given, windows)
            chain = chains[number]
            with torch.no_grad():
                found.append(_layer_statistics(layer, number, chain, kept_on_the_side[chain]))

    with observe_layers(observe):
        call()
    return found


def _first_windows(layer: Layer, count: int) -> Layer:
    region = None if layer.region is None else layer.region[:count]
    if region is not None:
        count -= count % region.shape[0]  # regions repeat, and only whole turns of them can be looked up
    tensors = {name: getattr(layer, name) for name in ("q", "k", "v", "index", "logits")}
    cut = {name: None if tensor is None else tensor[:count] for name, tensor in tensors.items()}
    return replace(layer, **cut, region=region)  # type: ignore[arg-type]


def _layer_statistics(layer: Layer, number: int, chain: int, side: _Chain) -> LayerStatistics:
    keys = layer.k.shape[2]
    own_or_all = dense_logits(layer)
    if layer.index is None:  # a dense chain hands over the sum of its layers
        before, side.full = side.full, own_or_all
        own = own_or_all if before is None else own_or_all - before
        candidates, kept = keys, min(layer.topk, keys)
        allowed = torch.ones_like(own, dtype=torch.bool)
        z = side.full
    else:
        assert side.full is not None
        assert layer.logits is not None
        own, index = own_or_all, layer.index.long()
        side.full = side.full + own
        candidates, kept = index.shape[-1], min(layer.topk, index.shape[-1])
        allowed = torch.zeros_like(own, dtype=torch.bool).scatter_(-1, index, value=True)
        z = own.gather(-1, index) + layer.logits.float()
    mass = z.softmax(-1).topk(kept, dim=-1).values.sum(-1)
    undropped = side.full.softmax(-1)
    wanted = side.full.topk(kept, dim=-1).indices
    overlap = None
    if side.own is not None and kept < keys:
        top, top_before = (
            torch.zeros_like(allowed).scatter_(-1, z.topk(kept, dim=-1).indices, value=True)
            for z in (own, side.own)
        )
        overlap = float((top & top_before).sum(-1).float().mean() / kept)
    side.own = own
    return LayerStatistics(
        layer=number,
        chain=chain,
        candidates=candidates,
        kept=kept,
        kept_mass=float(mass.mean()),
        kept_mass_low=float(mass.flatten().float().quantile(0.05))
        if mass.numel() < 1 << 24
        else float(mass.min()),
        missed_mass=float(undropped.masked_fill(allowed, 0.0).sum(-1).mean()),
        came_back=float((~allowed.gather(-1, wanted)).float().mean()),
        own_overlap=overlap,
        chance=kept / keys,
    )
