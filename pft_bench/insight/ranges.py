"""Ranges for a profiler around each block, layer and stage of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ..common import stages
from ..model import PFT
from ..model.attention import PFTLayer

Make = Callable[[str], AbstractContextManager[None]]


@contextmanager
def model_ranges(model: PFT, make: Make) -> Iterator[None]:
    """Open `make("block 0")`, `make("layer 3, 256 kept")` and `make("ffn")` around what they name, in this context."""
    numbers = {id(block): i for i, block in enumerate(model.layers)}
    numbers |= {id(layer): i for i, layer in enumerate(model.transformer_layers())}

    def name(module: object) -> str:
        kept = f", {module.topk} kept" if isinstance(module, PFTLayer) else ""
        return f"{'layer' if kept else 'block'} {numbers[id(module)]}{kept}"

    with stages.annotate(make), stages.observe_parts(lambda module: make(name(module))):
        yield
