"""Small inputs of any shape: products and layers, with views, bias tables, region maps and inherited logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..check import Layer
from ..problem import random_index


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, the same in every dtype but for rounding."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def index(
    batch: int, queries: int, keys: int, kept: int, seed: int = 0, dtype: torch.dtype = torch.int32
) -> Tensor:
    """Distinct keys a row, in random order."""
    drawn = torch.rand((batch, queries, keys), generator=generator(seed)).argsort(-1)
    return drawn[..., :kept].contiguous().to(dtype)


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
    index_dtype: torch.dtype = torch.int32,
) -> dict[str, Tensor]:
    """Inputs of sddmm (q, k, index), spmm (a, v, index) or spmm_transpose (a, x, index)."""
    places = index(batch, queries, keys, kept, seed, index_dtype)
    rows = normal(batch, queries, dim, seed=seed + 1, dtype=dtype)
    columns = normal(batch, keys, dim, seed=seed + 2, dtype=dtype)
    weights = normal(batch, queries, kept, seed=seed + 3, dtype=dtype)
    if op == "sddmm":
        return {"q": rows, "k": columns, "index": places}
    if op == "spmm":
        return {"a": weights, "v": columns, "index": places}
    return {"a": weights, "x": rows, "index": places}


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
    device: str = "cpu",
) -> Layer:
    """One layer: dense where `candidates` is None; `patterns` > 0 gives a region map of so many patterns.

    q, k and v are views of one projection wherever their shapes allow it, as in the model.
    """
    keys = tokens if keys is None else keys
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if keys == tokens and dim_v in (None, dim):
        projection = normal(windows, tokens, 3, heads, dim, seed=seed, dtype=dtype).to(device)
        q, k, v = projection.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        q = normal(windows, heads, tokens, dim, seed=seed, dtype=dtype).to(device)
        k = normal(windows, heads, keys, dim, seed=seed + 1, dtype=dtype).to(device)
        v = normal(windows, heads, keys, dim_v or dim, seed=seed + 2, dtype=dtype).to(device)
    table = region = places = logits = None
    if bias:
        table = normal((2 * math.isqrt(keys) - 1) ** 2, heads, seed=seed + 3, dtype=wide).to(device)
    if patterns:
        drawn = torch.randint(0, 3, (patterns, tokens), generator=generator(seed + 4))
        region = drawn.to(torch.uint8).to(device)
    if candidates is not None:
        rows = windows * heads * tokens
        places = random_index(rows, keys, candidates, generator(seed + 5)).to(device)
        places = places.view(windows, heads, tokens, candidates)
        logits = normal(windows, heads, tokens, candidates, seed=seed + 6, dtype=wide)
        logits = (logits - logits.amax(-1, keepdim=True) if candidates else logits).to(device)
    return Layer(
        q, k, v, table, region, places, logits, dim**-0.5, 100.0 if patterns else 0.0, topk
    )  # fmt: skip
