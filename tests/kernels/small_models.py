"""Both families of PFT in windows of 16 tokens, for kernels that are emulated, and the model in float64 beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pft_bench.model import PFT, generated_weights

FAMILIES: dict[str, dict[str, Any]] = {
    "light": {"embed_dim": 26, "mlp_ratio": 1, "upsampler": "pixelshuffledirect", "upscale": 3},
    "classical": {"embed_dim": 102, "mlp_ratio": 2, "upsampler": "pixelshuffle", "upscale": 2},
}
"""One bias column for all heads of 13 channels; one for each head of 51."""


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def small_model(family: str, backend: str) -> tuple[PFT, PFT, Tensor]:
    """(the model on `backend`, plain PyTorch in float64, an image of two windows, both padded).

    Dense layers that keep all and that select, then sparse ones, in chains of unshifted and of shifted windows.
    """
    shape = {"num_heads": 2, "window_size": 4, "convffn_kernel_size": 5}
    schedule = {"depths": [1, 2, 2], "num_topk": [16, 10, 10, 6, 3]}
    model = PFT(**shape, **schedule, **FAMILIES[family], backend=backend)
    exact = PFT(**shape, **schedule, **FAMILIES[family], backend="dense").double()
    for made in (model, exact):
        made.load_state_dict(generated_weights(made))
    return model, exact, torch.rand(1, 3, 3, 7, generator=torch.Generator().manual_seed(7))


def assert_equal_outputs(model: PFT, exact: PFT, image: Tensor) -> None:
    """Within 1e-6 of what float64 gives."""
    with torch.inference_mode():
        assert relative_error(model.eval()(image), exact.eval()(image.double())) <= 1e-6


def assert_equal_gradients(model: PFT, exact: PFT, image: Tensor, target: Tensor | None = None) -> None:
    """Of a training step's L1 loss, by all parameters and the image: within 1e-5 of what float64 gives."""
    gradients = []
    for trained in (model, exact):
        given = image.to(next(trained.parameters()), copy=True).requires_grad_()
        output = trained.train()(given)
        if target is None:
            target = torch.rand(output.shape, generator=torch.Generator().manual_seed(8))
        torch.nn.functional.l1_loss(output, target.to(output)).backward()
        gradients.append({"input": given.grad, **{key: p.grad for key, p in trained.named_parameters()}})
    errors = {key: relative_error(got, gradients[1][key]) for key, got in gradients[0].items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-5, f"{worst}: {errors[worst]:.1e}"
