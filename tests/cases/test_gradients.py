"""Calls that compute gradients: what runs in which mode, and what they return."""

from __future__ import annotations

import pytest
import torch

from pft_bench.harness.cases.gradients import GradientCall
from pft_bench.harness.cases.layer import LayerGradients, output_gradient
from pft_bench.harness.cases.settings import Settings
from pft_bench.harness.problem import Problem


def test_backward_alone_runs_the_forward_once():
    runs = []
    x = torch.randn(5, requires_grad=True)

    def forward():
        runs.append(1)
        return [x.square(), x.sin()]

    def ones(made):
        return [torch.ones_like(t) for t in made]

    expected = 2 * x.detach() + x.detach().cos()
    for mode, counted in (("backward", 1), ("train", 3)):
        runs.clear()
        call = GradientCall(mode, forward, [x], ones)
        for _ in range(3):
            (found,) = call()
            torch.testing.assert_close(found, expected)
        assert len(runs) == counted


@pytest.mark.parametrize("step", [(36, 36), (36, 9), (20, 9), (16, 16)])
def test_a_layers_backward_alone_gives_the_gradients_of_both(step):
    layer = Problem("attention", 2, 3, 36, 8, *step).layer()
    grad_out = output_gradient(layer)
    for one, other in zip(
        LayerGradients(layer, "cpu", "backward", grad_out)(),
        LayerGradients(layer, "dense", "train", grad_out)(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("op", ["sddmm", "spmm", "attention"])
def test_counts_of_both_are_the_sum(op):
    kept = 9 if op == "attention" else 20
    counts = {
        mode: (problem.kernel_flops(), problem.kernel_bytes())
        for mode in ("infer", "backward", "train")
        for problem in [Problem(op, 2, 3, 36, 8, 20, kept, mode=mode)]
    }
    assert counts["train"] == tuple(map(sum, zip(counts["infer"], counts["backward"], strict=True)))


def test_a_model_has_no_backward_alone():
    with pytest.raises(ValueError, match="mode backward is for levels op and layer, got layer, model"):
        Settings.make(schedules=["1024,256"], levels=["layer", "model"], mode="backward")


def test_bytes_of_a_backward_are_counted_by_hand():
    """216 rows: q, k and both gradients of 8 floats; the products and their gradient, of 20; the index."""
    problem = Problem("sddmm", 2, 3, 36, 8, 20, 20, mode="backward")
    assert problem.kernel_bytes() == 216 * (4 * 8 * 4 + 2 * 20 * 4 + 20 * 2)
