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
from ..measure.contender import Contender
from .changing_inputs import Inputs
from .changing_work import ChangingWork


def factorized_contender(name: str, layer: Layer, *, changes: bool = False) -> Contender:
    """The attention of `layer`, which has a bias table, from its q, k and v; `changes`: in rounds they change."""
    bias = layer.bias
    assert bias is not None

    def call() -> Tensor:
        return factorized_attention(layer.q, layer.k, layer.v, bias, scale=layer.scale)

    def judge(output: object, head: int | None) -> list[CheckResult]:
        return check_factorized(layer, cast(Tensor, output), head)

    given = Inputs({"q": layer.q, "k": layer.k, "v": layer.v, "bias": bias}) if changes else None
    work = None if given is None else ChangingWork(given, judge, own=True)
    return Contender(name, call, lambda given: judge(given(), None), work=work)


def check_factorized(layer: Layer, output: Tensor, head: int | None = None) -> list[CheckResult]:
    """Dense attention in float64 with the features' product as a bias; 20 rounding units, relative in norm.

    `head`: of that window-head alone (window * heads + head).
    """
    assert layer.bias is not None
    windows = layer.q.shape[0]
    chosen = slice(None) if head is None else slice(head, head + 1)
    q, k, v, out = (x.flatten(0, 1)[chosen].double() for x in (layer.q, layer.k, layer.v, output))
    positions = (x.repeat(windows, 1, 1)[chosen] for x in position_features(layer.bias.double()))
    queries, keys = positions
    exact = (q @ k.mT * layer.scale + queries @ keys.mT).softmax(-1) @ v
    error, bound = relative_error(out, exact), 20 * torch.finfo(layer.q.dtype).eps
    return [CheckResult("factorized attention", error / bound, f"relative error {error:.2g}")]
