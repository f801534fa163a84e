"""The published small models through the `triton` backend, forward and one training step."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import FAMILIES, assert_equal_gradients, assert_equal_outputs, relative_error, small_model
from triton_cases import DEVICE, INTERPRETED, runs_kernels

from pft_bench.model import PFT, generated_weights

pytestmark = runs_kernels
long = pytest.mark.skipif(
    INTERPRETED and "PFT_LONG_TESTS" not in os.environ,
    reason="minutes a model under the interpreter: set PFT_LONG_TESTS=1",
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def load(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]).to(DEVICE) for key in file.files}
    model = PFT(**facts["config"], backend="triton")
    model.load_state_dict(generated_weights(model))
    return facts, arrays, model.to(DEVICE)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs the published models")
@pytest.mark.parametrize("family", FAMILIES)
def test_output_of_a_small_model(family):
    assert_equal_outputs(*small_model(family, "triton"))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs the published models")
def test_training_step_of_a_small_model():
    """The light one: what is different in the gradients of the other, wide heads with a bias each, layers have."""
    assert_equal_gradients(*small_model("light", "triton"))


@long
@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_output(name):
    facts, arrays, model = load(name)
    with torch.inference_mode():
        output = model.eval()(arrays["input"])
    assert relative_error(output, arrays["output"]) <= max(2 * facts["official_fp32_rel_error"], 1e-6)


@long
@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_training_step_of_one_window(name):
    """A golden's model on a corner of its input: loss and every gradient against plain PyTorch in float64."""
    facts, arrays, model = load(name)
    exact = PFT(**facts["config"], backend="dense").double()
    exact.load_state_dict(generated_weights(exact))
    scale = facts["config"]["upscale"]
    target = arrays["target"][:1, :, : 5 * scale, : 8 * scale]
    assert_equal_gradients(model, exact.to(DEVICE), arrays["input"][:1, :, :5, :8], target)


@long
@pytest.mark.parametrize("name", ["classical_small_x2", "light_small_x4_odd"])
def test_training_step(name):
    """Loss and every stored gradient: within 1e-4, as for the other backends in float32."""
    facts, arrays, model = load(name)
    x = arrays["input"].clone().requires_grad_()
    loss = torch.nn.functional.l1_loss(model.train()(x), arrays["target"])
    loss.backward()
    assert loss.item() == pytest.approx(facts["train"]["loss"], rel=1e-6)
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    stored = {key.removeprefix("grad/"): value for key, value in arrays.items() if key.startswith("grad/")}
    errors = {key: relative_error(gradients[key], want) for key, want in stored.items()}
    errors["input"] = relative_error(x.grad, arrays["grad_input"])
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-4, f"{worst}: {errors[worst]:.1e}"
