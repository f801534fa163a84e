"""What the tests of the CUDA kernels share: products and layers of any shape in three dtypes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from pft_bench.backends import Layer

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


SEEDS = (0, 1, 2)
"""Orders of execution, and numbers."""


def in_turn(names: Iterable[str], seeds: int = len(SEEDS)) -> list[Any]:
    """Parameters (name, dtype, seed): every name in every dtype, the seeds in turn.

    What depends on the seed alone, bits that change with the order of execution, has tests with all of them.
    """
    return [
        pytest.param(name, dtype, (i + j) % seeds, id=f"{name}-{str(dtype)[6:]}")
        for i, name in enumerate(names)
        for j, dtype in enumerate(DTYPES)
    ]


def distinct_index(
    shape: tuple[int, ...], keys: int, generator: torch.Generator, *, ascending: bool, dtype: torch.dtype
) -> torch.Tensor:
    order = torch.rand((*shape[:-1], keys), generator=generator).argsort(-1)[..., : shape[-1]]
    return (order.sort(-1).values if ascending else order).to(dtype)


def assert_passed(results: list[Any]) -> None:
    failed = [str(r) for r in results if not r.passed]
    assert not failed, "\n".join(failed)


def product(
    op: str, b: int, n: int, m: int, d: int, kept: int, dtype: torch.dtype, seed: int, index: torch.dtype
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    places = distinct_index((b, n, kept), m, g, ascending=False, dtype=index)
    right = torch.randn((b, m, d), generator=g).to(dtype)
    if op == "sddmm":
        return {"q": torch.randn((b, n, d), generator=g).to(dtype), "k": right, "index": places}
    return {"a": torch.randn((b, n, kept), generator=g).to(dtype), "v": right, "index": places}


def layer(
    *,
    windows: int = 2,
    heads: int = 2,
    side: int = 5,
    dim: int = 13,
    dim_v: int | None = None,
    candidates: int | None = None,
    topk: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    bias: bool = True,
    regions: int = 0,
    ties: bool = False,
) -> Layer:
    """A layer on windows of side x side tokens; sparse with `candidates` entries a row, else dense."""
    g = torch.Generator().manual_seed(seed)
    n, dim_v = side * side, dim_v or dim
    # memory order [W, N, H, D], as a projection leaves it
    q, k = (torch.randn((windows, n, heads, dim), generator=g).to(dtype).transpose(1, 2) for _ in range(2))
    v = torch.randn((windows, n, heads, dim_v), generator=g).to(dtype).transpose(1, 2)
    if ties:
        k = torch.zeros_like(k)
    table = torch.randn(((2 * side - 1) ** 2, heads), generator=g) if bias else None
    region = torch.randint(0, 3, (regions, n), generator=g, dtype=torch.uint8) if regions else None
    index = logits = None
    if candidates is not None:
        index = distinct_index((windows, heads, n, candidates), n, g, ascending=True, dtype=torch.int16)
        logits = torch.randn((windows, heads, n, candidates), generator=g)
        logits = torch.zeros_like(logits) if ties else logits - logits.amax(-1, keepdim=True)
    return Layer(q, k, v, table, region, index, logits, dim**-0.5, 100.0, topk)


LAYERS = {
    "dense": {"topk": 25},
    "dense, one window of 36": {"windows": 1, "side": 6, "dim": 40, "topk": 40},
    "dense, regions": {"topk": 25, "regions": 2, "windows": 3},
    "dense, chain of three": {"side": 4, "dim": 60, "dim_v": 20, "topk": 16},
    "dense, no bias": {"topk": 25, "bias": False},
    "selection": {"topk": 6},
    "selection, regions": {"topk": 7, "regions": 2},
    "selection, K = 1": {"topk": 1, "side": 4, "dim": 20},
    "selection, wide values": {"topk": 9, "side": 4, "dim": 24, "dim_v": 72, "heads": 1},
    "sparse": {"candidates": 12, "topk": 5, "dim": 40},
    "sparse, nothing dropped": {"candidates": 12, "topk": 12},
    "sparse, K = 1": {"candidates": 9, "topk": 1, "dim": 20},
    "sparse, one candidate": {"candidates": 1, "topk": 1},
    "sparse, more than a warp": {"candidates": 40, "topk": 33, "side": 7, "windows": 1, "heads": 1},
    "sparse, no bias": {"candidates": 12, "topk": 5, "bias": False},
}


def tiles_of(backend: Any, dtype: torch.dtype) -> Any:
    """The rung that picks a sparse layer's candidates from tiles."""
    return backend.on_rung("split" if dtype == torch.float32 else "tiles")
