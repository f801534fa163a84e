"""Ranges for a profiler around each block, layer and stage of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

from .. import stages
from ..model import PFT
from ..model import pft as inference
from ..model.strips import infer_layer

Make = Callable[[str], AbstractContextManager[None]]


@contextmanager
def model_ranges(model: PFT, make: Make) -> Iterator[None]:
    """Open `make("block 0")`, `make("layer 3, 256 kept")` and `make("ffn")` around what they name, in this context.

    Inference goes past the layers' `forward` (strip by strip), training through it: both are marked.
    """
    layers = {id(layer): i for i, layer in enumerate(model.transformer_layers())}

    def layer_name(layer: Any) -> str:
        return f"layer {layers[id(layer)]}, {layer.topk} kept"

    @wraps(infer_layer)
    def marked_layer(layer: Any, *arguments: Any) -> Any:
        with make(layer_name(layer)):
            return infer_layer(layer, *arguments)

    with ExitStack() as stack:
        stack.enter_context(stages.annotate(make))
        stack.enter_context(mock.patch.object(inference, "infer_layer", marked_layer))
        for i, block in enumerate(model.layers):
            for name in ("infer", "forward"):
                stack.enter_context(
                    mock.patch.object(block, name, _inside(getattr(block, name), make, f"block {i}"))
                )
        for layer in model.transformer_layers():
            stack.enter_context(
                mock.patch.object(layer, "forward", _inside(layer.forward, make, layer_name(layer)))
            )
        yield


def _inside(function: Callable[..., Any], make: Make, name: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        with make(name):
            return function(*arguments, **keywords)

    return call
