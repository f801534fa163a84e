"""The published model's goldens through the CUDA kernels in the emulator: forward, loss and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pft_bench.model import PFT, generated_weights

emu = pytest.importorskip("pft_bench._cuda_emu")
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_golden_in_float32(name: str) -> None:
    """The same limits as every other backend: twice the published code's own float32 error, gradients to 1e-4."""
    emu.configure(seed=1)
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    model = PFT(**facts["config"], backend="cuda-emu")
    model.load_state_dict(generated_weights(model))

    launches = emu.counters()["launches"]
    with torch.inference_mode():
        output = model.eval()(arrays["input"])
    assert emu.counters()["launches"] > launches
    assert relative_error(output, arrays["output"]) <= max(2 * facts["official_fp32_rel_error"], 1e-6)

    x = arrays["input"].clone().requires_grad_()
    loss = torch.nn.functional.l1_loss(model.train()(x), arrays["target"])
    loss.backward()
    assert loss.item() == pytest.approx(facts["train"]["loss"], rel=1e-6)
    assert x.grad is not None
    assert relative_error(x.grad, arrays["grad_input"]) <= 1e-4
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    worst = max(abs(norms[key] / norm - 1) for key, norm in facts["train"]["grad_norms"].items())
    assert worst <= 1e-4
