"""Is a whole model right? Top-k is discontinuous, so this is a norm and a PSNR, never an elementwise match."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..backends import get
from ..ops import observe_layers
from ..reference import Layer
from .operator import check_layer
from .result import CheckResult

FLOOR = 1e-6
"""Relative error of a float32 model that is never called wrong: a few roundings of its output."""

PSNR_SHIFT_DB = 0.01


class ModelOracle:
    """The same model in float64 on masked dense attention, and what float32 costs there."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self._model = copy.deepcopy(model)
        self._x = x.detach()
        self._model.backend = "dense"  # type: ignore[assignment]
        with torch.no_grad():
            plain = self._model(self._x).double()
            self.exact: Tensor = self._model.double()(self._x.double())
        self.yardstick = max(relative_error(plain, self.exact), FLOOR)
        """Error of plain PyTorch in the model's own dtype, relative to float64."""


def relative_error(got: Tensor, exact: Tensor) -> float:
    """``|got - exact| / |exact|`` in the Euclidean norm."""
    return float((got.double() - exact).norm() / exact.norm())


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1."""
    mean_square = float((image.double().clamp(0, 1) - target.double().clamp(0, 1)).pow(2).mean())
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def check_output(oracle: ModelOracle, output: Tensor, target: Tensor) -> list[CheckResult]:
    """The output's error is at most twice plain PyTorch's own; its PSNR to `target` moves by at most 0.01 dB."""
    error = relative_error(output, oracle.exact)
    shift = abs(psnr(output, target) - psnr(oracle.exact, target))
    return [
        CheckResult(
            "model output",
            math.inf if math.isnan(error) else error / (2 * oracle.yardstick),
            f"relative error {error:.2g}, plain PyTorch {oracle.yardstick:.2g}",
        ),
        CheckResult(
            "model PSNR",
            math.inf if math.isnan(shift) else shift / PSNR_SHIFT_DB,
            f"shifted by {shift:.2g} dB",
        ),
    ]


def captured_layers(call: Callable[[], object]) -> list[Layer]:
    """One layer for every distinct step (width of q, candidates, kept) that `call` runs, on its real activations.

    Only the last window is kept, which in shifted layers holds several image regions.
    """
    found: dict[tuple[object, ...], Layer] = {}

    def keep(layer: Layer) -> None:
        step = (layer.q.shape[-1], layer.candidates, layer.topk, layer.region is None)
        if step not in found:
            found[step] = layer.window(layer.q.shape[0] - 1).copied()

    with observe_layers(keep):
        call()
    return list(found.values())


def check_layers(backend_name: str, layers: list[Layer], *, train: bool = False) -> list[CheckResult]:
    """`check_layer` for each of them; names say which step of the chain it was."""
    results = []
    for layer in layers:
        for result in check_layer(get(backend_name), layer, train=train):
            step = f"{layer.candidates}->{min(layer.topk, layer.candidates)}"
            results.append(CheckResult(f"{result.name} {step}", result.worst, result.detail))
    return results
