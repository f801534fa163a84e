"""The published model's outputs, loss and gradients.

In float32, two processors may round two logits that are nearly equal in different orders, and a model this small tells.
What is too far from the golden is held against the float64 model once more, with the choices of the float32 model, each
of which must be a right one. With its own choices the float64 model is the golden: that is tested, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pft_bench.reference import Layer
from torch import Tensor, nn

from pft_bench import ops
from pft_bench.harness.check import failures
from pft_bench.harness.check.model import Following
from pft_bench.harness.check.selection import check_selection
from pft_bench.ops import compute_layers, observe_layers

Choices = list[tuple[Layer, Tensor]]
Step = dict[str, Tensor]


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@contextmanager
def choices() -> Iterator[Choices]:
    """Every layer that drops entries while this lasts, with the keys that it kept."""
    found: Choices = []
    seen: list[Layer] = []
    attention = ops.progressive_attention

    def recording(*given, **named):
        out, state = attention(*given, **named)
        if seen[-1].selects:
            found.append((seen[-1].copied(), state.index))
        return out, state

    with pytest.MonkeyPatch.context() as patch, observe_layers(seen.append):
        patch.setattr(ops, "progressive_attention", recording)
        yield found


@contextmanager
def following(made: Choices) -> Iterator[None]:
    """Layers keep the same keys while this lasts, if those were right."""
    assert made
    for layer, kept in made:
        assert not failures(check_selection(layer, kept))
    with compute_layers(Following(kept for _, kept in made).attention_forward):
        yield


def test_output_in_float32(golden, backend):
    model, x = golden.model(torch.float32, backend).eval(), golden.arrays["input"]
    bound = max(2 * golden.fp32_error, 1e-6)
    with torch.inference_mode(), choices() as made:
        output = model(x)
    assert output.shape == golden.arrays["output"].shape
    if relative_error(output, golden.arrays["output"]) > bound:
        with torch.inference_mode(), following(made):
            exact = golden.model(torch.float64, "dense").eval()(x.double())
        assert relative_error(output, exact) <= bound


def test_loss_and_gradients_in_float32(golden, backend):
    with choices() as made:
        found = training_step(golden, golden.model(torch.float32, backend).train())
    name, error = worst(found, published(golden))
    if error > 1:
        with following(made):
            exact = training_step(golden, golden.model(torch.float64, "dense").train())
        name, error = worst(found, exact)
    assert error <= 1, f"{name}: {error:.1e} times its bound"


def test_choices_of_another_input_are_not_right_ones(golden):
    with torch.inference_mode(), choices() as made:
        golden.model(torch.float32, "dense").eval()(golden.arrays["input"])
    others = [(layer, kept.flip(1)) for layer, kept in made]
    with pytest.raises(AssertionError), following(others):
        pass


def test_float64_agrees_to_the_rounding_of_the_stored_result(golden):
    """What is left in float64 is the storage of the golden in float32: the formulas are the same."""
    model = golden.model(torch.float64, "reference").eval()
    with torch.inference_mode():
        output = model(golden.arrays["input"].double())
    assert relative_error(output, golden.arrays["output"]) < 6e-8


def test_training_in_float64_agrees_to_the_rounding_of_the_stored_result(golden):
    found = training_step(golden, golden.model(torch.float64, "reference").train())
    name, error = worst(found, published(golden), loss_bound=1e-9, gradient_bound=2e-7)
    assert error <= 1, f"{name}: {error:.1e} times its bound"


LOSS, INPUT, NORM = "the loss", "the input", "norm of "


def training_step(golden, model: nn.Module) -> Step:
    """Loss, gradients by name, and the norm of each parameter's."""
    dtype = next(model.parameters()).dtype
    x = golden.arrays["input"].to(dtype, copy=True).requires_grad_()
    loss = torch.nn.functional.l1_loss(model(x), golden.arrays["target"].to(dtype))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = {NORM + name: gradient.double().norm() for name, gradient in gradients.items()}
    return {LOSS: loss.detach(), INPUT: x.grad, **gradients, **norms}


def published(golden) -> Step:
    """What the published code gave: all norms, the gradients of small parameters alone."""
    stored = {name.removeprefix("grad/"): a for name, a in golden.arrays.items() if name.startswith("grad/")}
    norms = {NORM + name: torch.tensor(norm, dtype=torch.float64) for name, norm in golden.grad_norms.items()}
    return {
        LOSS: torch.tensor(golden.loss, dtype=torch.float64),
        INPUT: golden.arrays["grad_input"],
        **stored,
        **norms,
    }


def worst(
    found: Step, wanted: Step, *, loss_bound: float = 1e-6, gradient_bound: float = 1e-4
) -> tuple[str, float]:
    """The name of the largest relative error in units of its bound, and that error."""
    norms = {name for name in found if name.startswith(NORM)}
    assert {name for name in wanted if name.startswith(NORM)} == norms
    errors = {
        name: relative_error(found[name], want) / (loss_bound if name == LOSS else gradient_bound)
        for name, want in wanted.items()
    }
    name = max(errors, key=errors.__getitem__)
    return name, errors[name]
