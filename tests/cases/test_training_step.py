"""The check of a training step: what it must find, and what is no error."""

from __future__ import annotations

import pytest
import torch

from pft_bench.harness.cases.model import _check_step
from pft_bench.model import PFT, generated_weights


@pytest.fixture
def model() -> PFT:
    made = PFT(
        upscale=2, embed_dim=12, depths=(2,), num_heads=3, num_topk=(16, 9), window_size=4,
        convffn_kernel_size=3, mlp_ratio=2, upsampler="pixelshuffle", backend="cpu",
    )  # fmt: skip
    made.load_state_dict(generated_weights(made))
    return made.train()


def test_an_output_on_its_target_is_no_error_of_the_gradients(model: PFT) -> None:
    """There L1's gradient is the sign of a rounding error, which float64 need not share."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = model(x)
    target[..., ::3] += 0.1  # a loss that is not nothing
    results = {result.name: result for result in _check_step(model, x, target)}
    assert results["model gradients"].passed, str(results["model gradients"])


def test_one_wrong_gradient_is_found(model: PFT) -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    largest = max(model.parameters(), key=lambda p: p.numel())
    largest.register_hook(lambda grad: 1.05 * grad)
    results = {result.name: result for result in _check_step(model, x, torch.zeros(1, 3, 16, 16))}
    assert results["model loss"].passed
    assert not results["model gradients"].passed
