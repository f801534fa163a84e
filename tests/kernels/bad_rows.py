"""One number that is not finite: what it may spoil, and what every kernel must write all the same."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pft_bench.backends.base import poisoned
from pft_bench.harness.check import Layer
from pft_bench.harness.check.oracle import logits

ROW = 3


def check_bad_rows(backend: Any, layer: Layer) -> None:
    """Infinities and NaN in q, k and the earlier logits of a layer.

    A row without a finite logsumexp is NaN and keeps its first candidates: valid positions, since the next layer
    follows them. Rows whose logits did not change keep all their bits.
    """
    clean = _forward(backend, layer)
    one, all_of_row = slice(1), slice(None)
    cases = [(name, value, one) for name in ("q", "k", "logits") for value in (math.nan, math.inf, -math.inf)]
    for name, value, places in [*cases, ("logits", -math.inf, all_of_row)]:
        if getattr(layer, name) is not None:
            changed = getattr(layer, name).clone()
            changed[:, :, ROW, places] = value
            _check(backend, layer.with_tensors(**{name: changed}), layer, clean)


def _forward(backend: Any, layer: Layer) -> tuple[Tensor, ...]:
    with poisoned():
        return backend.attention_forward(layer)


def _check(backend: Any, layer: Layer, before: Layer, clean: tuple[Tensor, ...]) -> None:
    out, index, _, lse = got = _forward(backend, layer)
    z = _candidates(layer, logits(layer).value)
    bad = ~z.logsumexp(-1).isfinite()
    changed = (z != _candidates(before, logits(before).value)).any(-1)
    assert bool(changed.any())
    for new, old in zip(got, clean, strict=True):
        assert torch.equal(new[~changed], old[~changed])
    assert bool(out[bad].isnan().all())
    assert not bool(lse[bad].isfinite().any())
    assert bool(out[~bad].isfinite().all())
    assert bool(lse[~bad].isfinite().all())
    if index.shape[-1]:
        listed = _candidates(
            layer, torch.arange(layer.k.shape[2], device=index.device).expand(*bad.shape, -1)
        )
        assert torch.equal(index[bad].long(), listed[bad][..., : layer.topk])
        assert bool((index.unsqueeze(-1) == listed.unsqueeze(-2)).any(-1).all())
        assert bool((index[..., 1:] > index[..., :-1]).all())


def _candidates(layer: Layer, rows: Tensor) -> Tensor:
    """Of rows over all keys [W, H, N, M] what belongs to the candidates."""
    return rows if layer.index is None else rows.gather(-1, layer.index.long())
