"""The published model through the CUDA kernels in the emulator: the goldens' outputs, and training steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import FAMILIES, assert_equal_gradients, relative_error, small_model

from pft_bench.model import PFT, generated_weights

emu = pytest.importorskip("pft_bench._cuda_emu")
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"


@pytest.mark.slow(15)
@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_golden_output_in_float32(name: str) -> None:
    """The same limit as every other backend: twice the published code's own float32 error."""
    emu.configure(seed=1)
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        given, wanted = (torch.from_numpy(file[key]) for key in ("input", "output"))
    model = PFT(**facts["config"], backend="cuda-emu")
    model.load_state_dict(generated_weights(model))
    launches = emu.counters()["launches"]
    with torch.inference_mode():
        output = model.eval()(given)
    assert emu.counters()["launches"] > launches
    assert relative_error(output, wanted) <= max(2 * facts["official_fp32_rel_error"], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step(family: str) -> None:
    """Every gradient against plain PyTorch in float64, which has the published ones (tests/model/test_golden.py)."""
    emu.configure(seed=1)
    assert_equal_gradients(*small_model(family, "cuda-emu"))
