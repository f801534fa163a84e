"""Kernels that return what they remember, by whatever they take inputs to be known by."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....backends import get
from ...check import Layer
from ..mutant import BASE
from .base import Products, cheat, layer_tensors


class Remembers(Products):
    """A result for each `key` of the inputs."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """What it takes inputs to be known by."""
        return tuple((item.data_ptr(), item._version) for item in given)

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Remembered."""
        self.kept.append(given)
        made: Tensor = self.remembered((op, self.key(given)), lambda: Products.product(self, op, *given))
        return made

    def attention(self, layer: Layer) -> Any:
        """Remembered."""
        self.kept.append(layer)
        return self.remembered(self.key(layer_tensors(layer)), lambda: Products.attention(self, layer))


@cheat("remembers by address and version", "fresh inputs", "changed")
class ByAddress(Remembers):
    """A clone of what it returned for these pointers."""


@cheat("remembers a layer by address and version", "fresh inputs", "changed", "layer")
class LayerByAddress(Remembers):
    """The same, of a layer."""


@cheat("remembers by two elements", "fresh inputs", "changed")
class ByTwoElements(Remembers):
    """The first and the last value of each input."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """Those."""
        flat = (item.flatten() for item in given)
        return tuple(
            (item.data_ptr(), float(one[0]), float(one[-1])) for item, one in zip(given, flat, strict=True)
        )


@cheat("remembers by a checksum", "fresh inputs", "changed")
class ByChecksum(Remembers):
    """The sum of each input."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """Those."""
        return tuple(float(item.double().sum()) for item in given)


@cheat("keeps a clone of the second factor by address", "fresh inputs", "changed")
class KeepsFactor(Products):
    """As a packed copy of k or v that is made once."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With the clone."""
        left, right, index = given
        return super().product(op, left, self.remembered(right.data_ptr(), right.clone), index)


@cheat("keeps the index by address", "fresh inputs", "changed")
class KeepsIndex(Products):
    """As a transposed pattern that is made once."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With the clone."""
        left, right, index = given
        return super().product(op, left, right, self.remembered(index.data_ptr(), index.clone))


@cheat("keeps clones of k and v of a layer", "fresh inputs, attention recomputed", "changed", "layer")
class KeepsKeys(Products):
    """By their addresses."""

    def attention(self, layer: Layer) -> Any:
        """With the clones."""
        k, v = (self.remembered((x.data_ptr(), x.shape), x.clone) for x in (layer.k, layer.v))
        return super().attention(layer.with_tensors(k=k, v=v))


@cheat("keeps the softmax weights of a layer", "fresh inputs", "changed", "layer")
class KeepsWeights(Products):
    """All outputs but `out` are what they were for these addresses: only the values are multiplied anew."""

    def attention(self, layer: Layer) -> Any:
        """With the weights of the first q, k, bias, index and logits."""
        keep = {name: x for name, x in layer.tensors().items() if name != "v"}
        kept = {name: self.remembered((name, x.data_ptr(), x.shape), x.clone) for name, x in keep.items()}
        return super().attention(layer.with_tensors(**kept))


@cheat("remembers gradients by address", "fresh inputs", "changed", "layer", "train backward")
class GradientsByAddress(Products):
    """What it returned for these pointers."""

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Remembered."""
        key = tuple(item.data_ptr() for item in (layer.q, layer.k, layer.v, given[0]))
        if key not in self.known:
            self.known[key] = super().gradients(layer, *given)
        return tuple(None if item is None else item.clone() for item in self.known[key])


@cheat("computes gradients of the window-head that changed", "results judged", "grad", "op", "train backward")
class OnlyTheChangedHead(Products):
    """Where the index is another one than before; the others are what they were."""

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """Stale but for one window-head."""
        made = get(BASE).spmm_transpose(a, x, index, num_keys)
        known = self.known.get((made.shape, index.shape))
        if known is not None and self.is_timed():
            stale = (index == known[0]).flatten(1).all(1)
            made[stale] = known[1][stale]
        self.known[made.shape, index.shape] = index.clone(), made.clone()
        return made


@cheat("replays the layers of its first image", "fresh inputs", "model output", "model", "infer")
class ReplaysLayers(Products):
    """Once the check is over, each layer of a model is what it was for the image before."""

    layers = 4

    def attention(self, layer: Layer) -> Any:
        """By its place in the model."""
        if not self.is_timed():
            return super().attention(layer)
        return self.remembered(
            (self.calls % self.layers, layer.q.shape), lambda: Products.attention(self, layer)
        )


@cheat("keeps the gradients of its first image", "fresh inputs", "model gradients", "model", "train")
class ReplaysGradients(Products):
    """Once the check is over, by the place of the layer in the model."""

    layers = 4

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Remembered."""
        made = super().gradients(layer, *given)
        if not self.is_timed():
            return made
        key = (self.calls % self.layers, *(None if item is None else item.shape for item in made))
        return tuple(None if item is None else item.clone() for item in self.known.setdefault(key, made))


@cheat("keeps the product of its gradients by address", "fresh inputs", "changed", "op", "train backward")
class KeepsTransposed(Products):
    """The gradient of the second factor is what it was for these pointers."""

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """Remembered."""
        made: Tensor = self.remembered(
            (a.shape, x.shape, num_keys), lambda: get(BASE).spmm_transpose(a, x, index, num_keys)
        )
        return made
