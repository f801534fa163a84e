"""Wrong kernels on purpose: each must be found, by the check that is there for it, and right ones never.

The mutants of `pft_bench.harness.selftest` and more of the kind, each on every step of a chain that it can occur in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import BACKENDS, COMPOSITE, device_of, failed, layer, product
from torch import Tensor

from pft_bench.backends import Backend, get
from pft_bench.backends.base import empty
from pft_bench.harness.check import Layer, check_layer, check_product, check_ties, failures
from pft_bench.harness.check.operator import check_shapes
from pft_bench.harness.selftest.kernels import (
    LAYERS,
    accumulated,
    candidates_off_by_one,
    head_dim_tail_skipped,
    keeps_one_at_random,
    larger_key_wins,
    last_candidate_skipped,
    logits_not_accumulated,
    lost_update_of_k,
    lost_update_of_v,
    missing_bias,
    missing_region_mask,
    mutated_input,
    nan_in_one_entry,
    no_bias_gradient,
    renormalised,
    row_tail_skipped,
    slightly_wrong_exponential,
    stale,
    tf32_logits,
    unsorted_index,
    value_of_the_next_key,
    wide_index,
    wrong_head,
    zeros,
)
from pft_bench.harness.selftest.mutant import Mutant, breaks

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("q", "k", "v", "bias", "region", "index", "logits", "scale", "region_penalty", "topk")


def results_of(mutant: Backend, made: Layer) -> list[str]:
    return [result.name for result in failures(check_layer(mutant, made, train=True))]


DENSE, SPARSE, SELECTING = (
    ("dense", "dense, selects"),
    ("sparse, selects", "sparse"),
    ("dense, selects", "sparse, selects"),
)


# -- wrong values ------------------------------------------------------------------------------------------------------


@breaks("wrong_input", "attention out")
def bfloat16_values(given: Layer) -> Layer:
    return replace(given, v=given.v.bfloat16().float().contiguous())


@breaks("wrong_input", "attention logsumexp")
def bias_of_another_head(given: Layer) -> Layer:
    return replace(given, bias=given.bias.roll(1, 1).contiguous())  # type: ignore[union-attr]


@breaks("wrong_input", "attention logsumexp")
def bias_mirrored(given: Layer) -> Layer:
    """Query and key exchanged in the relative position."""
    return replace(given, bias=given.bias.flip(0).contiguous())  # type: ignore[union-attr]


@breaks("wrong_input", "attention logsumexp")
def scale_missing(given: Layer) -> Layer:
    return replace(given, scale=1.0)


@breaks("wrong_output", "attention logsumexp")
def wrong_logsumexp(given: Layer, outputs: list[Tensor]) -> None:
    outputs[3] = outputs[3] + 1e-4


@breaks("wrong_output", "attention shapes")
def wrong_shape(given: Layer, outputs: list[Tensor]) -> None:
    outputs[0] = outputs[0][:, :, :-1]


@breaks("wrong_output", "attention shapes")
def wrong_dtype(given: Layer, outputs: list[Tensor]) -> None:
    outputs[0] = outputs[0].double()


EVERYWHERE = [
    zeros, stale, nan_in_one_entry, value_of_the_next_key, wrong_head, head_dim_tail_skipped, row_tail_skipped,
    slightly_wrong_exponential, bfloat16_values, tf32_logits, mutated_input, missing_bias, bias_of_another_head,
    bias_mirrored, scale_missing, wrong_logsumexp, wrong_shape, wrong_dtype,
]  # fmt: skip


@breaks("wrong_input", "attention logsumexp")
def region_of_another_window(given: Layer) -> Layer:
    return replace(given, region=given.region.roll(1, 0).contiguous())  # type: ignore[union-attr]


# -- wrong selection ---------------------------------------------------------------------------------------------------


@breaks("wrong_output", "attention index")
def index_off_by_one(given: Layer, outputs: list[Tensor]) -> None:
    outputs[1] = outputs[1] + 1


@breaks("wrong_output", "attention index")
def index_twice(given: Layer, outputs: list[Tensor]) -> None:
    outputs[1][0, 0, 3, 1] = outputs[1][0, 0, 3, 0]


@breaks("wrong_output", "attention selection")
def keeps_the_smallest(given: Layer, outputs: list[Tensor]) -> None:
    keys = given.k.shape[2]
    offered = torch.arange(keys).expand(*given.q.shape[:3], keys) if given.index is None else given.index
    outputs[1] = offered[..., : given.topk].to(torch.int16).contiguous()


@breaks("wrong_output", "attention index")
def keeps_what_was_no_candidate(given: Layer, outputs: list[Tensor]) -> None:
    if given.index is None:
        outputs[1] = outputs[1] * 0 - 1
        return
    missing = next(key for key in range(16) if key not in given.index[0, 0, 0].tolist())
    outputs[1][0, 0, 0, 0] = missing
    outputs[1][0, 0, 0] = outputs[1][0, 0, 0].sort().values


@breaks("wrong_output", "attention logits")
def logits_not_relative(given: Layer, outputs: list[Tensor]) -> None:
    outputs[2] = outputs[2] + 0.01


# -- wrong gradients ---------------------------------------------------------------------------------------------------


@breaks("wrong_gradient", "attention grad_q")
def gradient_of_q_unscaled(given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]) -> None:
    got[0] = got[0] / given.scale


@breaks("wrong_gradient", "attention grad_bias")
def bias_gradient_of_one_window_only(
    given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]
) -> None:
    without = grad_out.clone()
    without[1:] = 0
    less = None if grad_logits is None else grad_logits.clone()
    if less is not None:
        less[1:] = 0
    got[3] = get("cpu").attention_backward(given, without, less, *done)[3]


@breaks("wrong_gradient", "attention grad_k")
def stale_gradient(given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]) -> None:
    stale = empty(got[1].shape, torch.float32, torch.device("cpu"))
    stale[:, :, 1:] = got[1][:, :, 1:]
    got[1] = stale


@breaks("wrong_gradient", "attention backward inputs untouched")
def backward_mutates_its_input(
    given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]
) -> None:
    grad_out.mul_(0.5)


GRADIENTS = [
    lost_update_of_k, lost_update_of_v, gradient_of_q_unscaled, bias_gradient_of_one_window_only, no_bias_gradient,
    stale_gradient, backward_mutates_its_input,
]  # fmt: skip


@breaks("wrong_gradient", "attention grad_q")
def handed_on_gradient_ignored(
    given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]
) -> None:
    """The gradient of the logits that the next layer inherits is dropped: a chain would train wrongly."""
    got[:] = get("cpu").attention_backward(given, grad_out, None, *done)


@breaks("wrong_gradient", "attention grad_logits")
def no_logits_gradient(given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]) -> None:
    got[4] = None


@breaks("wrong_gradient", "attention grad_logits")
def row_maximum_not_subtracted(
    given: Layer, grad_out: Any, grad_logits: Any, done: Any, got: list[Any]
) -> None:
    """Backward forgets that the logits are handed on relative to their maximum."""
    highest = given.logits.argmax(-1, keepdim=True)
    got[4] = got[4].scatter_add(-1, highest, grad_logits.sum(-1, keepdim=True))


PAIRS = (
    [(mutant, step) for mutant in [*EVERYWHERE, *GRADIENTS] for step in LAYERS]
    + [(mutant, step) for mutant in (missing_region_mask, region_of_another_window) for step in DENSE]
    + [(m, step) for m in (logits_not_accumulated, candidates_off_by_one, last_candidate_skipped) for step in SPARSE]
    + [
        (mutant, step)
        for mutant in (
            renormalised, unsorted_index, index_off_by_one, index_twice, wide_index, keeps_one_at_random,
            keeps_the_smallest, keeps_what_was_no_candidate, logits_not_relative,
        )
        for step in SELECTING
    ]
    + [(mutant, step) for mutant in (no_logits_gradient, row_maximum_not_subtracted) for step in SPARSE]
    + [(handed_on_gradient_ignored, step) for step in (*SELECTING, "sparse")]
)  # fmt: skip


@pytest.mark.parametrize(("mutant", "step"), PAIRS, ids=[f"{m.__name__}-{step}" for m, step in PAIRS])
def test_wrong_attention_is_found(mutant: type[Mutant], step: str) -> None:
    found = results_of(mutant(), layer(**LAYERS[step]))  # type: ignore[arg-type]
    if mutant.fails == "attention logsumexp" and step in SELECTING:
        # wrong logits may already show in what is kept, after which nothing else is compared
        assert {"attention logsumexp", "attention selection", "attention index"} & set(found)
    else:
        assert mutant.fails in found


@pytest.mark.parametrize("step", LAYERS)
def test_the_mutants_are_right_where_nothing_is_broken(step: str) -> None:
    assert not results_of(Mutant(), layer(**LAYERS[step]))  # type: ignore[arg-type]


# -- ties --------------------------------------------------------------------------------------------------------------


def test_ties_broken_to_the_larger_key_are_found() -> None:
    assert not failed(check_layer(larger_key_wins(), layer(bias=False)))  # without ties it is a right kernel
    names = [result.name for result in failures(check_ties(larger_key_wins(), torch.float32))]
    assert len(names) == 10, names


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dense"])
def test_ties_of_right_kernels(backend: str) -> None:
    assert not failed(check_ties(get(backend), torch.float32, device_of(backend)))


# -- half-precision accumulation ---------------------------------------------------------------------------------------


class Accumulates(Mutant):
    """Right, but for the dtype of its sums."""

    dtype = torch.float16

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        rows = torch.stack([k_b[index_b.long()] for k_b, index_b in zip(k, index, strict=True)])
        return accumulated(q.unsqueeze(2) * rows, self.dtype)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        rows = torch.stack([v_b[index_b.long()] for v_b, index_b in zip(v, index, strict=True)])
        return accumulated((a.unsqueeze(-1) * rows).transpose(-1, -2), self.dtype)

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        full = torch.zeros(*a.shape[:2], num_keys).scatter(-1, index.long(), a)
        return accumulated(full.mT.unsqueeze(2) * x.mT.unsqueeze(1), self.dtype)

    def attention_forward(self, given: Layer) -> Any:
        products = accumulated(given.q.unsqueeze(3) * given.k.unsqueeze(2), self.dtype)
        z = given.scale * products
        attn = z.softmax(-1)
        rows = given.q.shape[:3]
        nothing = torch.empty(*rows, 0, dtype=torch.int16), torch.empty(*rows, 0)
        return attn @ given.v, *nothing, z.logsumexp(-1)


class AccumulatesInBFloat16(Accumulates):
    dtype = torch.bfloat16


@pytest.mark.parametrize("mutant", [Accumulates, AccumulatesInBFloat16])
@pytest.mark.parametrize("dim", [2, 13, 40])
@pytest.mark.parametrize("kept", [2, 16, 64])
def test_sums_in_half_precision_are_found(mutant: type[Accumulates], dim: int, kept: int) -> None:
    for op in ("sddmm", "spmm"):
        inputs = product(op, 1, 9, 64, dim, kept)
        names = {result.name for result in failures(check_product(mutant(), op, inputs, train=True))}
        gradients = {"sddmm": "grad_q", "spmm": "grad_a"}, {"sddmm": "grad_k", "spmm": "grad_v"}
        assert f"{op} operator" in names
        assert {f"{op} {kind[op]} operator" for kind in gradients} <= names
    made = layer(windows=1, heads=1, dim=dim, topk=16, bias=False)
    found = [result.name for result in failures(check_layer(mutant(), made))]
    assert "attention logsumexp" in found
    mutant.dtype, before = torch.float32, mutant.dtype
    try:  # the same code in float32 is right: it is the dtype that was found
        assert not failed(check_layer(mutant(), made))
    finally:
        mutant.dtype = before


# -- products ----------------------------------------------------------------------------------------------------------

Change = Callable[..., Tensor]


def broken(op: str, change: Change) -> Mutant:
    """A mutant whose `op` returns what `change(backend, *arguments)` makes of it."""
    mutant = Mutant()
    setattr(mutant, op, lambda *arguments: change(get("cpu"), *arguments))
    return mutant


def stale_tail(out: Tensor) -> Tensor:
    fresh = empty(out.shape, out.dtype, torch.device("cpu"))
    fresh[..., :-1] = out[..., :-1]
    return fresh


def mutating(backend: Backend, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    out = backend.sddmm(q, k, index)
    index.copy_(index.flip(-1))
    return out


PRODUCT_MUTANTS: dict[str, tuple[str, Change, str]] = {
    "sddmm zeros": ("sddmm", lambda b, q, k, i: torch.zeros(i.shape), "sddmm operator"),
    "sddmm stale tail": ("sddmm", lambda b, q, k, i: stale_tail(b.sddmm(q, k, i)), "sddmm operator"),
    "sddmm index off by one": ("sddmm", lambda b, q, k, i: b.sddmm(q, k.roll(-1, 1), i), "sddmm operator"),
    "sddmm last channel skipped": (
        "sddmm", lambda b, q, k, i: b.sddmm(q[..., :-1].contiguous(), k[..., :-1].contiguous(), i), "sddmm operator"),
    "sddmm other window-head": ("sddmm", lambda b, q, k, i: b.sddmm(q, k.roll(1, 0), i), "sddmm operator"),
    "sddmm K order lost": ("sddmm", lambda b, q, k, i: b.sddmm(q, k, i.sort(-1).values), "sddmm operator"),
    "sddmm 8e-7 off": ("sddmm", lambda b, q, k, i: b.sddmm(q, k, i) * (1 + 8e-7), "sddmm against PyTorch"),
    "sddmm transposed shape": ("sddmm", lambda b, q, k, i: b.sddmm(q, k, i).mT, "sddmm operator"),
    "sddmm mutates its index": ("sddmm", mutating, "sddmm inputs untouched"),
    "spmm zeros": ("spmm", lambda b, a, v, i: torch.zeros(*i.shape[:2], v.shape[2]), "spmm operator"),
    "spmm stale tail": ("spmm", lambda b, a, v, i: stale_tail(b.spmm(a, v, i)), "spmm operator"),
    "spmm last entry skipped": (
        "spmm", lambda b, a, v, i: b.spmm(a[..., :-1].contiguous(), v, i[..., :-1].contiguous()), "spmm operator"),
    "spmm renormalises": (
        "spmm", lambda b, a, v, i: b.spmm((a / a.sum(-1, keepdim=True)).contiguous(), v, i), "spmm operator"),
    "spmm NaN in one entry": (
        "spmm", lambda b, a, v, i: b.spmm(a, v, i).index_fill(1, torch.tensor([3]), float("nan")), "spmm operator"),
    "lost updates of grad_k": (
        "spmm_transpose",
        lambda b, a, x, i, m: b.spmm_transpose(a.index_fill(1, torch.tensor([3]), 0.0), x, i, m),
        "grad",
    ),
    "last key never written": (
        "spmm_transpose", lambda b, a, x, i, m: stale_tail(b.spmm_transpose(a, x, i, m).mT).mT, "grad"),
}  # fmt: skip


@pytest.mark.parametrize(("op", "change", "fails"), PRODUCT_MUTANTS.values(), ids=PRODUCT_MUTANTS)
def test_wrong_products_are_found(op: str, change: Change, fails: str) -> None:
    for checked in ("sddmm", "spmm"):
        inputs = product(checked, 2, 9, 21, 13, 7)
        results = check_product(broken(op, change), checked, inputs, train=True)
        names = [result.name for result in failures(results)]
        if op == "spmm_transpose":
            assert f"{checked} grad_{'k' if checked == 'sddmm' else 'v'} operator" in names
        elif checked == op:
            assert fails in names
        else:  # the other product meets it in its backward
            assert names or "mutates" in fails or "untouched" in fails


# -- no false alarms ---------------------------------------------------------------------------------------------------


def seeds_of(backend: str) -> range:
    """Twenty; four in the emulator, where tests/kernels has hundreds of layers and products checked, of other seeds."""
    return range(4 if backend == "cuda-emu" else 20)


@pytest.mark.parametrize("step", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_right_layers_pass_for_every_seed(backend: str, step: str) -> None:
    for seed in seeds_of(backend):
        made = layer(**LAYERS[step], seed=seed, device=device_of(backend))  # type: ignore[arg-type]
        assert not failed(check_layer(get(backend), made, train=True)), seed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", LAYERS)
@pytest.mark.parametrize("backend", COMPOSITE)
def test_right_half_precision_layers_pass_for_twenty_seeds(
    backend: str, step: str, dtype: torch.dtype
) -> None:
    for seed in range(20):
        made = layer(**LAYERS[step], seed=seed, dtype=dtype, device=device_of(backend))  # type: ignore[arg-type]
        assert not failed(check_layer(get(backend), made, train=True)), seed


@pytest.mark.parametrize("op", ["sddmm", "spmm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_right_products_pass_for_every_seed(backend: str, op: str) -> None:
    for seed in seeds_of(backend):
        inputs = {k: t.to(device_of(backend)) for k, t in product(op, 2, 9, 21, 13, 7, seed=seed).items()}
        assert not failed(check_product(get(backend), op, inputs, train=True)), seed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_real_window_passes(backend: str) -> None:
    """32 x 32 tokens, as the published models have them: sums of 1024 terms must not loosen or break the bound.

    For the emulator, whose time is in proportion to both, first over many keys, then over many queries.
    """
    sizes = [(1024, 1024, 15)] if backend != "cuda-emu" else [(64, 1024, 3), (1024, 64, 3)]
    for queries, keys, dim in sizes:
        options = {"tokens": queries, "keys": keys, "dim": dim, "topk": keys // 4, "bias": queries == keys}
        made = layer(windows=1, heads=1, device=device_of(backend), **options)  # type: ignore[arg-type]
        assert not failed(check_layer(get(backend), made, train=True))


def test_shapes_are_compared_before_values() -> None:
    made = layer()
    out, index, logits, lse = get("cpu").attention_forward(made)
    assert check_shapes(made, out, index, logits, lse)[0].passed
    for wrong in (
        (out.half(), index, logits, lse),
        (out, index, logits[..., :1], lse),
        (out, index, logits, lse[0]),
    ):
        assert not check_shapes(made, *wrong)[0].passed
