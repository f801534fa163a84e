"""The published model's outputs, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def test_output_in_float32(golden, backend):
    model = golden.model(torch.float32, backend).eval()
    with torch.inference_mode():
        output = model(golden.arrays["input"])
    assert output.shape == golden.arrays["output"].shape
    assert relative_error(output, golden.arrays["output"]) <= max(2 * golden.fp32_error, 1e-6)


def test_loss_and_gradients_in_float32(golden, backend):
    model = golden.model(torch.float32, backend).train()
    check_training_step(golden, model, torch.float32, loss_error=1e-6, gradient_error=1e-4)


def test_float64_agrees_to_the_rounding_of_the_stored_result(golden):
    """What is left in float64 is the storage of the golden in float32: the formulas are the same."""
    model = golden.model(torch.float64, "reference").eval()
    with torch.inference_mode():
        output = model(golden.arrays["input"].double())
    assert relative_error(output, golden.arrays["output"]) < 6e-8


def test_training_in_float64_agrees_to_the_rounding_of_the_stored_result(golden):
    model = golden.model(torch.float64, "reference").train()
    check_training_step(golden, model, torch.float64, loss_error=1e-9, gradient_error=2e-7)


def check_training_step(golden, model, dtype, *, loss_error: float, gradient_error: float) -> None:
    arrays = golden.arrays
    x = arrays["input"].to(dtype, copy=True).requires_grad_()
    loss = torch.nn.functional.l1_loss(model(x), arrays["target"].to(dtype))
    loss.backward()
    assert loss.item() == pytest.approx(golden.loss, rel=loss_error)

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(golden.grad_norms)
    stored = {name.removeprefix("grad/"): a for name, a in arrays.items() if name.startswith("grad/")}
    errors = {name: relative_error(gradients[name], want) for name, want in stored.items()}
    errors["input"] = relative_error(x.grad, arrays["grad_input"])
    errors |= {
        f"norm of {name}": abs(gradients[name].double().norm().item() / norm - 1)
        for name, norm in golden.grad_norms.items()
    }
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= gradient_error, f"{worst}: {errors[worst]:.1e}"
