"""Is a whole model right? Top-k is discontinuous, so this is a norm and a PSNR, never an elementwise match.

Where two logits lie nearer than the arithmetic can tell, two right models may keep different entries, and in a small
model one such entry outweighs all rounding. An output that is too far from float64 is therefore held against the
float64 model once more, this time with its own choices (`ModelOracle.following`), each of which must be one that the
bounds of its logits allow, and against plain PyTorch with its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...backends import get
from ...backends.base import AttentionForward
from ...backends.dense import DenseBackend
from ...ops import compute_layers, observe_layers
from ...reference import Layer
from .operator import check_layer
from .result import CheckResult, failures
from .selection import check_selection

FLOOR = 1e-6
"""Relative error of a float32 model that is never called wrong: a few roundings of its output."""

PSNR_SHIFT_DB = 0.01


class Following(DenseBackend):
    """Masked dense attention that keeps what it is told, layer by layer."""

    def __init__(self, kept: Iterable[Tensor]) -> None:
        self._kept = iter(kept)

    def select(self, z: Tensor, layer: Layer) -> Tensor:
        """The places of the next kept keys."""
        kept = next(self._kept).long()
        return kept if layer.index is None else torch.searchsorted(layer.index.long(), kept)


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

    def following(self, kept: Iterable[Tensor]) -> Tensor:
        """The float64 output where every layer that drops entries keeps `kept` [W, H, N, K], one tensor a layer."""
        with torch.no_grad(), compute_layers(Following(kept).attention_forward):
            output: Tensor = self._model(self._x.double())
        return output

    def by_choice(self, model: nn.Module) -> tuple[Tensor, Tensor, list[CheckResult]]:
        """(output of `model`, the float64 output with the same choices, whether each choice is a right one)."""
        backend = get(str(model.backend))
        kept: list[Tensor] = []
        choices: list[CheckResult] = []

        def compute(layer: Layer) -> AttentionForward:
            results = backend.attention_forward(layer)
            if layer.selects:
                kept.append(results[1])
                choices.extend(check_selection(layer, results[1]))
            return results

        with torch.no_grad(), compute_layers(compute):
            output: Tensor = model(self._x)
        return output, self.following(kept) if not failures(choices) else self.exact, choices


def relative_error(got: Tensor, exact: Tensor) -> float:
    """``|got - exact| / |exact|`` in the Euclidean norm."""
    return float((got.double() - exact).norm() / exact.norm())


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1."""
    mean_square = float((image.double().clamp(0, 1) - target.double().clamp(0, 1)).pow(2).mean())
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def check_output(
    oracle: ModelOracle, output: Tensor, target: Tensor, model: nn.Module | None = None
) -> list[CheckResult]:
    """The output's error is at most twice plain PyTorch's own; its PSNR to `target` moves by at most 0.01 dB.

    With the `model` that made it, an output that fails is judged by its own choices among logits that cannot be told
    apart, and so is plain PyTorch: each against float64 with the same choices.
    """
    results = _compared(output, oracle.exact, oracle.yardstick, target)
    if model is None or not failures(results):
        return results
    _, exact, choices = oracle.by_choice(model)
    if failures(choices):
        return results + failures(choices)
    peer = copy.deepcopy(model)
    peer.backend = "dense"  # type: ignore[assignment]
    plain, plain_exact, _ = oracle.by_choice(peer)
    yardstick = max(relative_error(plain, plain_exact), FLOOR)
    return _compared(output, exact, yardstick, target, "; each with its own choices among equal logits")


def _compared(
    output: Tensor, exact: Tensor, yardstick: float, target: Tensor, how: str = ""
) -> list[CheckResult]:
    error = relative_error(output, exact)
    shift = abs(psnr(output, target) - psnr(exact, target))
    return [
        CheckResult(
            "model output",
            math.inf if math.isnan(error) else error / (2 * yardstick),
            f"relative error {error:.2g}, plain PyTorch {yardstick:.2g}{how}",
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
