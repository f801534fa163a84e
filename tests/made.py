"""Inputs for tests: products, layers and chains of any shape, and the backends that can be tested here."""

from __future__ import annotations

from typing import Any

import pft_bench
from pft_bench.backends import get
from pft_bench.selftest.inputs import generator, index, layer, normal, product

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
]

BACKENDS = [row.name for row in pft_bench.backends() if row.available]
COMPOSITE = [name for name in BACKENDS if get(name).composite]
NATIVE = [name for name in BACKENDS if not get(name).composite]


def device_of(backend: str) -> str:
    """Where tensors for this backend have to be."""
    return "cpu" if "cpu" in get(backend).devices else "cuda"


def failed(results: Any) -> list[str]:
    """The texts of the checks that did not pass, so that a test's message shows them."""
    return [str(result) for result in results if not result.passed]
