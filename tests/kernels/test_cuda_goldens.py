"""The published model through the CUDA kernels in the emulator: outputs of the goldens' models, and training steps."""

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


@pytest.mark.parametrize(
    ("name", "corner"), [("classical_small_x2", (12, 20)), ("light_small_x4_odd", (11, 13))]
)
def test_output_of_a_golden_model_in_float32(name: str, corner: tuple[int, int]) -> None:
    """On several windows of its input, which are padded, beside plain PyTorch in float64.

    That gives the published output to its last digit (tests/model/test_golden.py). The limit is the same as for every
    other backend there: twice the published code's own float32 error.
    """
    emu.configure(seed=1)
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        given = torch.from_numpy(file["input"])[:1, :, : corner[0], : corner[1]]
    model, exact = (PFT(**facts["config"], backend=backend) for backend in ("cuda-emu", "dense"))
    for made in (model, exact):
        made.load_state_dict(generated_weights(made))
    launches = emu.counters()["launches"]
    with torch.inference_mode():
        output, wanted = model.eval()(given), exact.double().eval()(given.double())
    assert emu.counters()["launches"] > launches
    assert relative_error(output, wanted) <= max(2 * facts["official_fp32_rel_error"], 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_step(family: str) -> None:
    """Every gradient against plain PyTorch in float64, which has the published ones (tests/model/test_golden.py)."""
    emu.configure(seed=1)
    assert_equal_gradients(*small_model(family, "cuda-emu"))
