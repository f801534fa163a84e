"""The published small models through the `triton` backend, forward and one training step."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
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


WINDOW_4 = {
    "light": {
        "embed_dim": 26,
        "num_heads": 2,
        "mlp_ratio": 1,
        "upsampler": "pixelshuffledirect",
        "upscale": 3,
    },
    "classical": {"embed_dim": 102, "num_heads": 2, "mlp_ratio": 2, "upsampler": "pixelshuffle"},
}
"""Both families in windows of 16 tokens: one bias column for all heads of 13 channels, one for each of 51."""


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs the published models")
@pytest.mark.parametrize("family", WINDOW_4)
def test_output_and_training_step_of_a_small_model(family):
    """Padded, shifted windows, dense layers that keep all and that select, then sparse ones; the image is odd.

    Output, loss and every gradient, against plain PyTorch in float64. The light one is trained; what is different in
    the gradients of the other, wide heads with a bias each, test_triton_attention.py has.
    """
    config = {
        "window_size": 4,
        "convffn_kernel_size": 5,
        "depths": [1, 2, 2],
        "num_topk": [16, 10, 10, 6, 3],
    }
    model, exact = (
        PFT(**config, **WINDOW_4[family], backend=backend).to(dtype)
        for backend, dtype in (("triton", torch.float32), ("dense", torch.float64))
    )
    for made in (model, exact):
        made.load_state_dict(generated_weights(made))
    x = torch.rand(1, 3, 4, 7, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        assert relative_error(model.eval()(x), exact.eval()(x.double())) <= 1e-6
    if family == "light":
        assert_equal_gradients(
            model, exact, x, torch.rand(1, 3, 12, 21, generator=torch.Generator().manual_seed(8))
        )


def assert_equal_gradients(model, exact, image, target):
    """Of a training step's L1 loss, by all parameters and the image: within 1e-5 of what float64 gives."""
    gradients = []
    for trained in (model, exact):
        given = image.to(next(trained.parameters()), copy=True).requires_grad_()
        output = trained.train()(given)
        torch.nn.functional.l1_loss(output, target.to(output)).backward()
        gradients.append({"input": given.grad, **{key: p.grad for key, p in trained.named_parameters()}})
    errors = {key: relative_error(got, gradients[1][key]) for key, got in gradients[0].items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-5, f"{worst}: {errors[worst]:.1e}"


def relative_error(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


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
