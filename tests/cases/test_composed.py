"""The compositions of public operators do the layer's work, and their checks would see it if they did not."""

from __future__ import annotations

import pytest
import torch

from pft_bench.harness.cases import composed
from pft_bench.harness.cases.layer import LayerGroup, output_gradient
from pft_bench.harness.measure.admission import verify
from pft_bench.harness.measure.verified import Verified
from pft_bench.harness.problem import Problem
from pft_bench.harness.selftest.cheating import tiny_settings

STEPS = [(20, 9), (16, 16)]


def layer(candidates, kept):
    problem = Problem("attention", 2, 3, 36, 8, candidates, kept)
    return problem.layer()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", composed.COMPOSED)
def test_forward_passes_its_check(name, step):
    made = layer(*step)
    results = composed.check_inference(made, composed.inference_call(name, made))
    assert results
    assert all(result.passed for result in results), results


@pytest.mark.parametrize("name", composed.COMPOSED)
def test_a_composition_without_the_bias_fails_its_check(name):
    made = layer(20, 9)
    results = composed.check_inference(made, composed.inference_call(name, made.with_tensors(bias=None)))
    assert not all(result.passed for result in results)


def test_a_composition_that_keeps_the_smallest_fails_its_check():
    made = layer(20, 9)

    def smallest():
        flipped = composed.Composition(made.with_tensors(q=-made.q, bias=-made.bias, logits=-made.logits))
        return flipped.dense(-made.q, made.k, made.v, -made.bias, -made.logits)

    assert not all(result.passed for result in composed.check_inference(made, smallest))


@pytest.mark.parametrize("mode", ["train", "backward"])
@pytest.mark.parametrize("step", STEPS)
def test_gradients_pass_their_check_and_wrong_ones_do_not(step, mode):
    made = layer(*step)
    grad_out = output_gradient(made)
    call = composed.GradientsOfDense(made, grad_out, mode)
    for _ in range(2):  # backward alone goes through the same graph again
        assert all(result.passed for result in composed.check_training(made, call, grad_out))
    wrong = composed.GradientsOfDense(made, grad_out + 1e-3, mode)
    assert not all(result.passed for result in composed.check_training(made, wrong, grad_out))


@pytest.mark.parametrize(("name", "prepared"), [(name, "fresh" not in name) for name in composed.COMPOSED])
def test_only_the_fresh_ones_read_the_index_when_called(name, prepared):
    made = layer(20, 9)
    call = composed.inference_call(name, made)
    before = call()[0]
    made.index.copy_(made.index.flip(-2))  # other keys for each row
    assert (call()[0] == before).all() == prepared


@pytest.mark.parametrize("mode", ["infer", "train", "backward"])
@pytest.mark.parametrize("step", [(9, 9), (9, 5)])
def test_compositions_are_right_while_their_inputs_change(step, mode):
    with torch.set_grad_enabled(mode != "infer"):
        contenders = LayerGroup(tiny_settings("layer", mode, "cpu"), *step).contenders()
        assert len(contenders) == (7 if mode == "infer" else 3)
        for contender in contenders:
            found = verify(contender)
            assert isinstance(found, Verified), found
