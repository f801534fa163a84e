"""Products that check their index on the way, for less than a pass of its own over the index costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Product = TypeVar("Product", bound=Callable[..., Tensor])


class BadIndex(Exception):
    """An index that a product was to check has a fault. What is wrong with it the caller finds out, and says."""


def checks_index(product: Product) -> Product:
    """Mark a product of a backend that takes `checked=False`, for an index whose entries nobody has looked at.

    The index is then any contiguous int16, int32 or int64 tensor [B, N, K]. The product raises `BadIndex` unless each
    row holds distinct keys in range, and reads nothing that a bad entry names.
    """
    product.checks_index = True  # type: ignore[attr-defined]
    return product


def can_check_index(product: Callable[..., Tensor]) -> bool:
    """Whether `checks_index` marks this very method: one that overrides it does not inherit the mark."""
    return getattr(product, "checks_index", False)
