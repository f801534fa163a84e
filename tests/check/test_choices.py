"""A whole model that decides between equal logits otherwise than float64 is right; one that is wrong stays wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pft_bench import PFT
from pft_bench.backends import Layer, base
from pft_bench.backends.dense import DenseBackend
from pft_bench.harness.check import ModelOracle, check_output, failures
from pft_bench.model import generated_weights

Check = Callable[..., tuple[list[str], list[str]]]


class LargerKeys(DenseBackend):
    """Of equal logits it keeps the last ones, where plain PyTorch and the other kernels keep earlier ones."""

    name = "last"

    def select(self, z: Tensor, layer: Layer) -> Tensor:
        order = z.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., : layer.topk]
        return (z.shape[-1] - 1 - order).sort(-1).values


class ScaledOutput(LargerKeys):
    def attention_forward(self, layer: Layer) -> Any:
        out, *rest = super().attention_forward(layer)
        return out * (1 + 1e-4), *rest


class WrongLogits(LargerKeys):
    """What it hands on is off; the layers after it choose rightly on what they are given."""

    def attention_forward(self, layer: Layer) -> Any:
        out, index, logits, lse = super().attention_forward(layer)
        return out, index, logits * torch.linspace(1, 1.1, logits.shape[-1]) - 0.01 * logits.cumsum(-1), lse


class Smallest(LargerKeys):
    """Keeps the wrong entries, and computes rightly with them."""

    def select(self, z: Tensor, layer: Layer) -> Tensor:
        return super().select(-z, layer)


class SmallestInOneRow(LargerKeys):
    def select(self, z: Tensor, layer: Layer) -> Tensor:
        places = super().select(z, layer)
        places[0, 0, 3] = super().select(-z, layer)[0, 0, 3]
        return places


class Drifting(LargerKeys):
    """Wrong the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def attention_forward(self, layer: Layer) -> Any:
        self.calls += 1
        out, *rest = super().attention_forward(layer)
        return out * (1.001 if self.calls == 1 else 1), *rest


class MutatesTheCandidates(LargerKeys):
    """Drops a candidate before it selects."""

    def attention_forward(self, layer: Layer) -> Any:
        if layer.index is not None and layer.logits is not None and layer.selects:
            layer = replace(layer, logits=layer.logits - 1.0 * (layer.index == layer.index[..., :1]))
        return super().attention_forward(layer)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """(failures against float64 alone, failures where choices are followed) of a small model on a backend."""

    def call(backend: DenseBackend, *, tied: bool) -> tuple[list[str], list[str]]:
        monkeypatch.setitem(base._BACKENDS, "last", (__name__, "LargerKeys"))
        monkeypatch.setitem(base._loaded, "last", backend)
        model = PFT(
            embed_dim=12, depths=(2, 2, 2), num_heads=3, num_topk=(16, 16, 5, 5, 2, 2), window_size=4,
            convffn_kernel_size=3, mlp_ratio=2, upscale=2, upsampler="pixelshuffledirect", backend="last",
        ).eval()  # fmt: skip
        weights = generated_weights(model)
        for name, value in weights.items():
            if tied and "wqkv" in name:
                value[12:24] = 0  # no keys: all logits of a row are the bias, which is one number
            if tied and "bias_table" in name:
                value[:] = 0.25
        model.load_state_dict(weights)
        x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        oracle = ModelOracle(model, x)
        with torch.no_grad():
            output = model(x)
        target = torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
        alone = failures(check_output(oracle, output, target))
        followed = failures(check_output(oracle, output, target, model))
        return [r.name for r in alone], [r.name for r in followed]

    return call


def test_another_choice_between_equal_logits_is_no_error(check: Check) -> None:
    alone, followed = check(LargerKeys(), tied=True)
    assert "model output" in alone
    assert followed == []


def test_without_ties_the_first_comparison_decides(check: Check) -> None:
    assert check(LargerKeys(), tied=False) == ([], [])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrong", [ScaledOutput, Drifting])
def test_wrong_values_are_seen_behind_any_choice(check: Check, wrong: type[DenseBackend], tied: bool) -> None:
    alone, followed = check(wrong(), tied=tied)
    assert "model output" in alone
    assert "model output" in followed


@pytest.mark.parametrize("wrong", [Smallest, SmallestInOneRow, MutatesTheCandidates])
def test_wrong_choices_are_no_ties(check: Check, wrong: type[DenseBackend]) -> None:
    alone, followed = check(wrong(), tied=False)
    assert "model output" in alone
    assert {"model output", "attention selection"} <= set(followed)


def test_wrong_logits_handed_on_are_seen_in_what_follows(check: Check) -> None:
    assert "model output" in check(WrongLogits(), tied=False)[1]
