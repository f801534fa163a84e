"""One layer of progressive attention on every backend, forward and backward, against masked dense attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import BACKENDS, COMPOSITE, LAYERS, NATIVE, device_of, failed, layer, normal
from torch import Tensor

import pft_bench
from pft_bench import reference
from pft_bench.backends import get, poisoned
from pft_bench.harness.check import Layer, check_layer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shape(backend: str, shape: dict[str, Any]) -> None:
    made = layer(**shape, device=device_of(backend))
    assert not failed(check_layer(get(backend), made, train=True))


@pytest.mark.parametrize("backend", COMPOSITE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [{}, {"topk": 16, "patterns": 2}, {"candidates": 9, "topk": 4}], ids=str)
def test_other_dtypes_of_plain_pytorch(backend: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    made = layer(**shape, dtype=dtype, device=device_of(backend))
    assert not failed(check_layer(get(backend), made, train=True))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_layer(backend: str, data: st.DataObject) -> None:
    side = data.draw(st.integers(1, 5))
    tokens = side * side
    sparse = data.draw(st.booleans())
    windows = data.draw(st.integers(0, 4))
    made = layer(
        windows=windows,
        heads=data.draw(st.integers(1, 3)),
        tokens=tokens,
        dim=data.draw(st.integers(1, 35)),
        dim_v=data.draw(st.integers(1, 35)),
        candidates=data.draw(st.integers(1, tokens)) if sparse else None,
        topk=data.draw(st.integers(1, tokens + 1)),
        bias=data.draw(st.booleans()),
        patterns=0 if sparse or not windows else data.draw(st.sampled_from([0, 1, windows])),
        seed=data.draw(st.integers(0, 99)),
        device=device_of(backend),
    )
    assert not failed(check_layer(get(backend), made, train=True))


def double(made: Layer) -> Layer:
    """The same layer in float64 on the CPU."""
    return made.map(lambda x: x.cpu().double() if x.is_floating_point() else x.cpu())


@pytest.mark.parametrize(
    "shape",
    [{}, {"topk": 16, "patterns": 2}, {"candidates": 9, "topk": 4}, {"candidates": 9, "topk": 9}],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_outputs_equal_the_reference_in_float64(backend: str, shape: dict[str, Any]) -> None:
    made = layer(**shape, device=device_of(backend))
    out, kept, logits, lse = get(backend).attention_forward(made)
    exact = reference.attention(double(made))
    assert torch.equal(kept.cpu(), exact[1])
    assert kept.dtype == torch.int16
    for got, wanted in zip((out, logits, lse), (exact[0], exact[2], exact[3]), strict=True):
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [{"topk": 4}, {"topk": 9, "patterns": 2}, {"candidates": 5, "topk": 3}], ids=str
)
@pytest.mark.parametrize("backend", COMPOSITE)
def test_gradients_in_float64_by_finite_differences(backend: str, shape: dict[str, Any]) -> None:
    made = layer(**shape, windows=2, heads=2, tokens=9, dim=3, dtype=torch.float64)
    names = [n for n in ("q", "k", "v", "bias", "logits") if getattr(made, n) is not None]
    leaves = [getattr(made, n).detach().clone().requires_grad_() for n in names]

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        copy = replace(made, **dict(zip(names, values, strict=True)))
        out, _, logits, lse = get(backend).attention_forward(copy)
        return out, logits, lse

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_lies_token_major(backend: str) -> None:
    """Merging the heads for the projection that follows must not cost a copy."""
    if get(backend).composite:
        pytest.skip("plain PyTorch returns what its matmul returns")
    made = layer(device=device_of(backend))
    out = get(backend).attention_forward(made)[0]
    assert out.transpose(1, 2).is_contiguous()


# -- ties --------------------------------------------------------------------------------------------------------------


def tied(candidates: int | None, topk: int, *, tokens: int = 36, seed: int = 0) -> Layer:
    """Small integers: every arithmetic is exact, most logits of a row are equal, so the choice is fully determined."""
    made = layer(tokens=tokens, dim=4, candidates=candidates, topk=topk, bias=False, seed=seed)
    q, k = made.q.round().clamp(-1, 1), made.k.round().clamp(-1, 1)
    logits = None if made.logits is None else made.logits.round().clamp(-1, 0)
    return replace(made, q=q, k=k, logits=logits, scale=1.0)


@pytest.mark.parametrize("topk", [1, 5, 16, 17, 35])
@pytest.mark.parametrize("candidates", [None, 36])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dense"])
def test_equal_logits_keep_the_smaller_key(backend: str, candidates: int | None, topk: int) -> None:
    """torch.topk, which `dense` uses, leaves the order of ties open; everybody else follows the specification."""
    for seed in range(1 if backend == "cuda-emu" else 3):  # `check_ties` goes through its selection again
        made = tied(candidates, topk, seed=seed)
        device = device_of(backend)
        kept = get(backend).attention_forward(made.map(partial(Tensor.to, device=device)))[1].cpu()
        assert torch.equal(kept, reference.attention(made)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_equal_logits_are_uniform_attention(backend: str) -> None:
    """All candidates tie, for instance where q is zero: nothing may be kept twice or lost."""
    made = layer(bias=False, topk=5, device=device_of(backend))
    made = replace(made, q=torch.zeros_like(made.q))
    out, kept, logits, _ = get(backend).attention_forward(made)
    picked = made.v.gather(2, kept[..., :1].long().expand(-1, -1, -1, 13))
    for j in range(1, 5):
        picked = picked + made.v.gather(2, kept[..., j : j + 1].long().expand(-1, -1, -1, 13))
    torch.testing.assert_close(out, picked / 16)
    assert float(logits.abs().max()) == 0
    assert bool((kept[..., 1:] > kept[..., :-1]).all())


# -- extreme values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"topk": 16}, {"candidates": 9, "topk": 4}], ids=str)
@pytest.mark.parametrize("size", [1e-20, 30.0, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_any_size_do_not_overflow(backend: str, size: float, shape: dict[str, Any]) -> None:
    made = layer(**shape, bias=False, device=device_of(backend))
    made = replace(made, q=made.q * size)
    results = check_layer(get(backend), made, train=True)
    # where few rows are not yet one-hot, those few decide who is nearer to float64: that is luck
    assert not failed(result for result in results if result.name != "attention against PyTorch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_far_entry_underflows_to_zero_and_not_to_nan(backend: str) -> None:
    made = layer(candidates=9, topk=9, bias=False, device=device_of(backend))
    logits = made.logits.clone()
    logits[..., 1:] = -1e30
    made = replace(made, logits=logits)
    assert not failed(check_layer(get(backend), made, train=True))


# -- strided and unaligned inputs through the public op ----------------------------------------------------------------

VIEWS = {
    "transposed last dimension": lambda w, h, n, d: normal(w, h, d, n).mT,
    "expanded over heads": lambda w, h, n, d: normal(w, 1, n, d).expand(w, h, n, d),
    "expanded over windows": lambda w, h, n, d: normal(1, h, n, d).expand(w, h, n, d),
    "expanded over tokens": lambda w, h, n, d: normal(w, h, 1, d).expand(w, h, n, d),
    "every second channel": lambda w, h, n, d: normal(w, h, n, 2 * d)[..., ::2],
    "offset by one float": lambda w, h, n, d: normal(w, h, n, d + 1)[..., 1:],
    "every second token": lambda w, h, n, d: normal(w, h, 2 * n, d)[:, :, ::2],
}


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: str, view: Any, which: str) -> None:
    device = device_of(backend)
    made = layer()
    values = {"q": made.q, "k": made.k, "v": made.v} | {which: view(2, 3, 16, 13)}
    plain = {name: t.contiguous().to(device).requires_grad_() for name, t in values.items()}
    viewed = {name: t.to(device).requires_grad_() for name, t in values.items()}
    results = []
    for tensors in (plain, viewed):
        out, state = pft_bench.progressive_attention(**tensors, topk=5, backend=backend)
        weight = normal(*out.shape, seed=5).to(device)
        grads = torch.autograd.grad((out * weight).sum() + state.logits.sum(), list(tensors.values()))
        results.append((out, state.index, state.logits, *grads))
    for got, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", NATIVE)
def test_strided_gradients_of_the_output(backend: str) -> None:
    """A gradient may arrive expanded (of a sum) or transposed."""
    device = device_of(backend)
    made = layer(device=device)
    for grad in (
        torch.ones((), device=device).expand(2, 3, 16, 13),
        normal(2, 3, 13, 16).to(device).mT,
        normal(2, 3, 16, 26).to(device)[..., ::2],
    ):
        found = []
        for seed in (grad, grad.contiguous()):
            leaves = [t.detach().clone().requires_grad_() for t in (made.q, made.k, made.v)]
            out, _ = pft_bench.progressive_attention(*leaves, topk=5, backend=backend)
            found.append(torch.autograd.grad(out, leaves, seed))
        for got, wanted in zip(*found, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_are_fully_written(backend: str) -> None:
    """Every output starts as NaN; a sum of all of them shows what nobody wrote."""
    device = device_of(backend)
    for shape in (
        {},
        {"topk": 16, "patterns": 2},
        {"candidates": 9, "topk": 4},
        {"candidates": 9, "topk": 9},
    ):
        made = layer(**shape, device=device)  # type: ignore[arg-type]
        leaves = [t.detach().clone().requires_grad_() for t in (made.q, made.k, made.v, made.bias)]
        q, k, v, bias = leaves
        state = None
        if made.index is not None:
            logits = made.logits.clone().requires_grad_()
            leaves.append(logits)
            state = pft_bench.ChainState.sparse(made.index, logits, 16)
        with poisoned():
            out, after = pft_bench.progressive_attention(
                q, k, v, bias=bias, topk=made.topk, state=state, region=made.region, backend=backend
            )
            total = out.sum() + (0 if after.logits is None else after.logits.sum())
            grads = torch.autograd.grad(total, leaves)
        for tensor in (out, *grads, *(t for t in (after.logits,) if t is not None)):
            assert bool(tensor.isfinite().all())
