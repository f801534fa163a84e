"""Inputs for tests: products, layers and chains of any shape, and the backends that can be tested here."""

from __future__ import annotations

from typing import Any

import pft_bench
from pft_bench.backends import get
from pft_bench.harness.inputs import generator, index, layer, normal, product
from pft_bench.model import PFTConfig

__all__ = [
    "BACKENDS",
    "COMPOSITE",
    "NATIVE",
    "device_of",
    "failed",
    "generator",
    "index",
    "layer",
    "normal",
    "product",
    "tiny_config",
]

BACKENDS = [row.name for row in pft_bench.backends() if row.available]
COMPOSITE = [name for name in BACKENDS if get(name).composite]
NATIVE = [name for name in BACKENDS if not get(name).composite]


def device_of(backend: str) -> str:
    """Where tensors for this backend have to be."""
    return "cpu" if "cpu" in get(backend).devices else "cuda"


def tiny_config(*kept: int) -> PFTConfig:
    """A model of windows of 16 tokens and blocks of two layers that keep `kept` entries, one number a block."""
    return PFTConfig(
        embed_dim=12,
        depths=(2,) * len(kept),
        num_heads=3,
        num_topk=tuple(k for k in kept for _ in range(2)),
        window_size=4,
        convffn_kernel_size=3,
        mlp_ratio=2,
        upscale=2,
        upsampler="pixelshuffledirect",
    )


def failed(results: Any) -> list[str]:
    """The texts of the checks that did not pass, so that a test's message shows them."""
    return [str(result) for result in results if not result.passed]
