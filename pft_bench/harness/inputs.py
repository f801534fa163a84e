"""Random inputs of any shape: products, and layers with views, bias tables, region maps and inherited logits.

The one place that draws them: benchmark problems, planted bugs, counters, the GPU session and tests take theirs from
here. All is drawn on the CPU by a seeded generator, so that every device and every day gets the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import Layer
from ..reference import index_dtype as narrowest

BIAS = 0.3
"""Standard deviation of bias tables: as large as the logits of a trained model's tables are beside its products."""


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, the same in every dtype but for rounding."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def index(
    batch: int, queries: int, keys: int, kept: int, seed: int = 0, dtype: torch.dtype = torch.int32
) -> Tensor:
    """Distinct keys a row, in random order; [batch, queries, kept]."""
    drawn = torch.rand((batch, queries, keys), generator=generator(seed)).argsort(-1)
    return drawn[..., :kept].contiguous().to(dtype)


def random_index(rows: int, keys: int, kept: int, generator: torch.Generator) -> Tensor:
    """`kept` distinct keys a row, uniformly drawn, ascending; [rows, kept] int16 (int32 beyond 32767 keys)."""
    if kept == keys:
        return torch.arange(keys).to(narrowest(keys)).expand(rows, keys).contiguous()
    drawn = torch.rand((rows, keys), generator=generator).topk(kept, dim=-1).indices
    return drawn.sort(dim=-1).values.to(narrowest(keys))


def product(
    op: str,
    batch: int,
    queries: int,
    keys: int,
    dim: int,
    kept: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype | None = torch.int32,
    model_like: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Inputs of sddmm (q, k, index), spmm (a, v, index) or spmm_transpose (a, x, index).

    `model_like`: ascending rows in the narrowest integers, and weights that sum to 1, as a model has them. Else rows in
    random order of `index_dtype` (None: the narrowest), and standard normal weights.
    """
    g = generator(seed)
    if model_like:
        places = random_index(batch * queries, keys, kept, g).view(batch, queries, kept)
    else:
        places = torch.rand((batch, queries, keys), generator=g).argsort(-1)[..., :kept].contiguous()
        places = places.to(index_dtype or narrowest(keys))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    length = queries if op == "spmm_transpose" else keys
    right = torch.randn((batch, length, dim), generator=g, dtype=wide).to(dtype)
    if op == "sddmm":
        left = torch.randn((batch, queries, dim), generator=g, dtype=wide).to(dtype)
        made = {"q": left, "k": right, "index": places}
    else:
        weights = torch.randn((batch, queries, kept), generator=g, dtype=wide)
        weights = (weights.softmax(-1) if model_like else weights).to(dtype)
        made = {"a": weights, "v" if op == "spmm" else "x": right, "index": places}
    return {name: tensor.to(device) for name, tensor in made.items()}


def layer(
    *,
    windows: int = 2,
    heads: int = 3,
    tokens: int = 16,
    keys: int | None = None,
    dim: int = 13,
    dim_v: int | None = None,
    candidates: int | None = None,
    topk: int = 5,
    bias: bool = True,
    patterns: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Layer:
    """One layer: dense where `candidates` is None; `patterns` > 0 gives a region map of so many patterns.

    q, k and v are views of one projection wherever their shapes allow it, as in the model.
    """
    g, keys = generator(seed), tokens if keys is None else keys
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=wide)

    if keys == tokens and dim_v in (None, dim):
        projection = drawn(windows, tokens, 3, heads, dim).to(dtype).to(device)
        q, k, v = projection.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        q = drawn(windows, heads, tokens, dim).to(dtype).to(device)
        k = drawn(windows, heads, keys, dim).to(dtype).to(device)
        v = drawn(windows, heads, keys, dim_v or dim).to(dtype).to(device)
    table = region = places = logits = None
    if bias:
        table = (BIAS * drawn((2 * math.isqrt(keys) - 1) ** 2, heads)).to(device)
    if candidates is not None:
        rows = windows * heads * tokens
        places = random_index(rows, keys, candidates, g).view(windows, heads, tokens, candidates).to(device)
        logits = drawn(windows, heads, tokens, candidates)
        logits = (logits - logits.amax(-1, keepdim=True) if candidates else logits).to(device)
    if patterns:
        region = torch.randint(0, 3, (patterns, tokens), generator=g).to(torch.uint8).to(device)
    return Layer(q, k, v, table, region, places, logits, dim**-0.5, 100.0 if patterns else 0.0, topk)
