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
from pft_bench.harness.measure import timer
from pft_bench.model import PFTConfig

__all__ = [
    "BACKENDS",
    "COMPOSITE",
    "LAYERS",
    "NATIVE",
    "SMALL",
    "device_of",
    "failed",
    "files_of_at_most",
    "generator",
    "index",
    "layer",
    "measure_quickly",
    "native_in_turn",
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

LAYERS: dict[str, dict[str, Any]] = {
    "dense, selects": {},
    "dense, stays dense": {"topk": 16},
    "dense, topk beyond the window": {"topk": 1024},
    "dense, keeps one": {"topk": 1},
    "dense, keeps all but one": {"topk": 15},
    "dense, masked regions": {"windows": 4, "patterns": 4},
    "dense, fewer patterns than windows": {"windows": 4, "patterns": 2, "topk": 16},
    "dense, one pattern for all windows": {"windows": 3, "patterns": 1},
    "dense, regions without a bias table": {"patterns": 2, "bias": False},
    "dense, no bias table": {"bias": False},
    "dense, N = 1": {"tokens": 1, "topk": 1},
    "dense, N = 1, other M": {"tokens": 1, "keys": 37, "topk": 5, "bias": False},
    "dense, M = 1": {"tokens": 7, "keys": 1, "topk": 1, "bias": False},
    "dense, more queries than keys": {"tokens": 37, "keys": 11, "bias": False},
    "dense, more keys than queries": {"tokens": 5, "keys": 67, "bias": False, "topk": 33},
    "dense, N not a multiple of anything": {"tokens": 25, "topk": 11},
    "dense, two layers in one (Dk = 2 Dv)": {"dim": 26, "dim_v": 13},
    "dense, Dv larger than Dk": {"dim": 5, "dim_v": 33},
    "dense, D = 1": {"dim": 1},
    "dense, D = 20": {"dim": 20},
    "dense, D = 40": {"dim": 40},
    "dense, D = 100": {"dim": 100},
    "dense, one head": {"heads": 1},
    "dense, no windows": {"windows": 0},
    "dense, no windows, regions": {"windows": 0, "patterns": 2},
    "dense, tokens of a real window row": {"windows": 1, "heads": 1, "tokens": 144, "dim": 20, "topk": 65},
    "sparse, keeps all": {"candidates": 9, "topk": 9},
    "sparse, topk beyond the candidates": {"candidates": 9, "topk": 100},
    "sparse, selects": {"candidates": 9, "topk": 4},
    "sparse, keeps one": {"candidates": 9, "topk": 1},
    "sparse, one candidate": {"candidates": 1, "topk": 1},
    "sparse, every key a candidate": {"candidates": 16, "topk": 5},
    "sparse, every key kept": {"candidates": 16, "topk": 16},
    "sparse, candidates one above a vector": {"tokens": 36, "candidates": 17, "topk": 16},
    "sparse, no bias table": {"candidates": 9, "topk": 4, "bias": False},
    "sparse, D = 1": {"candidates": 9, "topk": 4, "dim": 1},
    "sparse, D = 40": {"candidates": 9, "topk": 4, "dim": 40},
    "sparse, Dv other than Dk": {"candidates": 9, "topk": 4, "dim": 7, "dim_v": 19},
    "sparse, M other than N": {"tokens": 5, "keys": 67, "candidates": 33, "topk": 9, "bias": False},
    "sparse, N = 1": {"tokens": 1, "candidates": 1, "topk": 1},
    "sparse, no windows": {"windows": 0, "candidates": 9, "topk": 4},
    "sparse, one head": {"heads": 1, "candidates": 9, "topk": 4},
}
"""Layers that every backend is tested on, as arguments of `layer`."""


def device_of(backend: str) -> str:
    """Where tensors for this backend have to be."""
    return "cpu" if "cpu" in get(backend).devices else "cuda"


def native_in_turn(cases: dict[str, Any], first: int = 0) -> list[Any]:
    """Parameters (backend, case): each case once, on the native backends in turn.

    For what PyTorch's side of an op does, which is the same for all of them and slow in the emulator.
    """
    return [
        pytest.param(
            NATIVE[(first + i) % len(NATIVE)], case, id=f"{name}-{NATIVE[(first + i) % len(NATIVE)]}"
        )
        for i, (name, case) in enumerate(cases.items())
    ]


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


def measure_quickly(patched: pytest.MonkeyPatch) -> None:
    """For tests of all but the times: a tenth of the warm-up and of a block, and no collections of garbage.

    A measurement begins with a full collection, and so does each of its parts; in a process full of tests each takes a
    second.
    """
    patched.setattr("gc.collect", lambda *_: 0)
    patched.setattr(timer, "WARMUP_S", timer.WARMUP_S / 10)
    patched.setattr(timer.CpuTimer.__init__, "__defaults__", (timer.MIN_BLOCK_S / 10,))


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
