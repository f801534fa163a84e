"""The published model through the CUDA kernels in the emulator: output and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pft_bench.model import PFT, generated_weights

emu = pytest.importorskip("pft_bench._cuda_emu")
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def made(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], PFT]:
    emu.configure(seed=1)
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    model = PFT(**facts["config"], backend="cuda-emu")
    model.load_state_dict(generated_weights(model))
    return facts, arrays, model


@pytest.mark.slow(15)
def test_golden_output_in_float32() -> None:
    """The same limit as every other backend: twice the published code's own float32 error. Thirty windows."""
    facts, arrays, model = made("light_small_x4_odd")
    launches = emu.counters()["launches"]
    with torch.inference_mode():
        output = model.eval()(arrays["input"])
    assert emu.counters()["launches"] > launches
    assert relative_error(output, arrays["output"]) <= max(2 * facts["official_fp32_rel_error"], 1e-6)


@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_output_and_gradients_on_a_corner(name: str) -> None:
    """Two windows, both padded, against plain PyTorch in float64.

    That float64 has the published output and gradients of whole pictures is tests/model/test_golden.py's to show.
    """
    facts, arrays, model = made(name)
    exact = PFT(**facts["config"], backend="dense").double()
    exact.load_state_dict(generated_weights(exact))
    corner, scale = arrays["input"][:1, :, :7, :11], facts["config"]["upscale"]
    with torch.inference_mode():
        assert relative_error(model.eval()(corner), exact.eval()(corner.double())) <= 1e-6
    target = arrays["target"][:1, :, : 7 * scale, : 11 * scale]
    gradients = []
    for trained in (model, exact):
        x = corner.to(next(trained.parameters()).dtype, copy=True).requires_grad_()
        torch.nn.functional.l1_loss(trained.train()(x), target.to(x)).backward()
        gradients.append({"input": x.grad, **{key: p.grad for key, p in trained.named_parameters()}})
    errors = {key: relative_error(got, gradients[1][key]) for key, got in gradients[0].items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-5, f"{worst}: {errors[worst]:.1e}"
