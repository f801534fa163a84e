"""Inputs for tests: products, layers and chains of any shape, and the backends that can be tested here."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import pft_bench
from pft_bench.backends import base, get
from pft_bench.harness.inputs import generator, index, layer, normal, product
from pft_bench.model import PFTConfig

__all__ = [
    "BACKENDS",
    "COMPOSITE",
    "NATIVE",
    "SMALL",
    "device_of",
    "failed",
    "files_of_at_most",
    "generator",
    "index",
    "layer",
    "normal",
    "product",
    "register_broken",
    "tiny_config",
]

BACKENDS = [row.name for row in pft_bench.backends() if row.available]
COMPOSITE = [name for name in BACKENDS if get(name).composite]
NATIVE = [name for name in BACKENDS if not get(name).composite]


# Two blocks of three layers, both chains dense at first, windows of 4x4, heads that share no bias.
SMALL: dict[str, Any] = {
    "embed_dim": 12,
    "depths": (3, 3),
    "num_heads": 3,
    "num_topk": (16, 16, 9, 9, 5, 5),
    "window_size": 4,
    "convffn_kernel_size": 3,
    "mlp_ratio": 2,
    "upscale": 2,
    "upsampler": "pixelshuffle",
}


def device_of(backend: str) -> str:
    """Where tensors for this backend have to be."""
    return "cpu" if "cpu" in get(backend).devices else "cuda"


def register_broken(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """A backend "broken" that is not available, for this reason."""

    class Broken(base.Backend):
        name = "broken"
        summary = ""
        dtypes = frozenset({torch.float32})
        devices = frozenset({"cpu"})

        def available(self) -> str | None:
            return reason

    monkeypatch.setitem(base._BACKENDS, "broken", ("broken", "Broken"))
    monkeypatch.setitem(base._loaded, "broken", Broken())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond that many bytes fails, for root as well. Undone at once: pytest writes files too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
