"""SST's attention on a layer's own inputs: all tokens, positions inside the product, PyTorch's flash kernel.

It is what one would take instead of sparse kernels, so it stands beside them; its logits are others, for it has the
layer's bias at a low rank and nothing of its chain.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ...model.factorized import factorized_attention, position_features
from ...reference import Layer
from ..check.model import relative_error
from ..check.result import CheckResult
from ..measure.contender import Call, Contender


def factorized_contender(name: str, layer: Layer) -> Contender:
    """The attention of `layer`, which has a bias table, from its q, k and v alone."""
    bias = layer.bias
    assert bias is not None

    def call() -> Tensor:
        return factorized_attention(layer.q, layer.k, layer.v, bias, scale=layer.scale)

    return Contender(name, call, lambda given: check_factorized(layer, given))


def check_factorized(layer: Layer, call: Call) -> list[CheckResult]:
    """Dense attention in float64 with the features' product as a bias; 20 rounding units, relative in norm."""
    assert layer.bias is not None
    q, k, v = (x.double() for x in (layer.q, layer.k, layer.v))
    queries, keys = position_features(layer.bias.double())
    exact = (q @ k.mT * layer.scale + queries @ keys.mT).softmax(-1) @ v
    error = relative_error(cast(Tensor, call()), exact)
    bound = 20 * torch.finfo(layer.q.dtype).eps
    return [CheckResult("factorized attention", error / bound, f"relative error {error:.2g}")]
