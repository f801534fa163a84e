"""Layers with nothing in them, values near the end of the range, and rows that the loss leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import BACKENDS, COMPOSITE, NATIVE, device_of, layer, normal
from torch import Tensor

import pft_bench
from pft_bench import ChainState
from pft_bench.ops import is_eager

pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(backend: str, given: dict[str, Tensor], state: ChainState | None, topk: int) -> list[Tensor]:
    """Of everything that a layer takes, from everything that it returns."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in given.items()}
    logits = None
    if state is not None and state.logits is not None:
        assert state.index is not None
        logits = state.logits.detach().clone().requires_grad_()
        state = ChainState.sparse(state.index, logits, state.num_keys)
    out, after = pft_bench.progressive_attention(**leaves, topk=topk, state=state, backend=backend)
    total = out.sum() if after.logits is None else out.sum() + after.logits.sum()
    wanted = [*leaves.values(), *([] if logits is None else [logits])]
    return [out, *torch.autograd.grad(total, wanted)]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("topk", [9, 3])
@pytest.mark.parametrize(("windows", "queries"), [(2, 0), (0, 5)], ids=["no queries", "no windows"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_without_rows(backend: str, windows: int, queries: int, topk: int, sparse: bool) -> None:
    device = device_of(backend)
    given = {
        "q": torch.zeros(windows, 3, queries, 8, device=device),
        "k": normal(windows, 3, 9, 8).to(device),
        "v": normal(windows, 3, 9, 7).to(device),
    }
    state = None
    if sparse:
        places = torch.zeros(windows, 3, queries, 5, dtype=torch.int16, device=device)
        state = ChainState.sparse(places, torch.zeros(places.shape, device=device), 9)
    out, grad_q, grad_k, grad_v, *_ = gradients(backend, given, state, topk)
    assert out.shape == (windows, 3, queries, 7)
    assert grad_q.shape == given["q"].shape
    assert (grad_k.shape, grad_v.shape) == (given["k"].shape, given["v"].shape)
    assert not grad_k.any()
    assert not grad_v.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_none_has_gradients_of_none(backend: str) -> None:
    """With a bias table and regions, as the model has them: the table's gradient is zero, not missing."""
    made = layer(windows=0, topk=5, device=device_of(backend))
    assert made.bias is not None
    given = {"q": made.q, "k": made.k, "v": made.v, "bias": made.bias}
    *_, grad_bias = gradients(backend, given, None, 5)
    assert grad_bias.shape == made.bias.shape
    assert not grad_bias.any()


@pytest.mark.parametrize("topk", [16, 5], ids=["keeps all", "selects"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("size", [1e38, 3e38, 1e-38])
@pytest.mark.parametrize("backend", ["cpu", *COMPOSITE])
def test_a_mean_of_large_values_is_finite(backend: str, size: float, sparse: bool, topk: int) -> None:
    """Each output is a mean of the values, or less. Weights must be divided before they meet them, or seem so."""
    made = layer(topk=topk, candidates=9 if sparse else None)
    state = ChainState.sparse(made.index, made.logits, 16) if sparse else None
    assert made.bias is not None
    arguments: dict[str, Any] = {"topk": topk, "bias": made.bias, "state": state, "backend": backend}
    out, _ = pft_bench.progressive_attention(made.q, made.k, made.v.sign() * size, **arguments)
    wanted, _ = pft_bench.progressive_attention(
        made.q.double(),
        made.k.double(),
        made.v.sign().double(),
        **arguments | {"backend": "reference", "bias": made.bias.double(), "state": _wide(state)},
    )
    torch.testing.assert_close(out.double() / size, wanted, rtol=1e-4, atol=1e-4)


def _wide(state: ChainState | None) -> ChainState | None:
    if state is None:
        return None
    assert state.index is not None
    assert state.logits is not None
    return ChainState.sparse(state.index, state.logits.double(), state.num_keys)


@pytest.mark.parametrize("spoiled", ["query", "logits", "all minus infinity"])
@pytest.mark.parametrize("topk", [9, 4], ids=["keeps all", "selects"])
@pytest.mark.parametrize("backend", ["cpu"])
def test_a_row_left_out_of_the_loss_spoils_no_gradient(backend: str, topk: int, spoiled: str) -> None:
    """0 times a NaN is a NaN: on its way to the keys and values that the row shares with the others."""
    if spoiled == "query":
        made, state = layer(topk=topk), None
        made.q[0, 1, 3] = float("nan")
    else:
        made = layer(topk=topk, candidates=9)
        assert made.logits is not None
        made.logits[0, 1, 3] = float("nan") if spoiled == "logits" else -float("inf")
        state = ChainState.sparse(made.index, made.logits, 16)
    assert made.bias is not None
    names = ("q", "k", "v", "bias")
    leaves = {name: made.tensors()[name].detach().clone().requires_grad_() for name in names}
    out, after = pft_bench.progressive_attention(**leaves, topk=topk, state=state, backend=backend)
    assert out[0, 1, 3].isnan().all(), "the row itself must show"
    kept = torch.ones_like(out, dtype=torch.bool)
    kept[0, 1, 3] = False
    loss = out[kept].square().sum()
    if after.logits is not None:
        loss = loss + after.logits[kept[..., 0]].exp().sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    assert [name for name, grad in zip(names, grads, strict=True) if not grad.isfinite().all()] == []
    # They are those of the layer without that row's trouble.
    sane = made.with_tensors(
        q=made.q.nan_to_num(0.5), **({} if made.logits is None else {"logits": _sane(made.logits)})
    )
    if made.logits is not None:
        state = ChainState.sparse(sane.index, sane.logits, 16)
    leaves = {name: sane.tensors()[name].detach().clone().requires_grad_() for name in names}
    out, after = pft_bench.progressive_attention(**leaves, topk=topk, state=state, backend=backend)
    loss = out[kept].square().sum()
    if after.logits is not None:
        loss = loss + after.logits[kept[..., 0]].exp().sum()
    for got, wanted in zip(grads, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(got, wanted)


def _sane(logits: Tensor) -> Tensor:
    return torch.where(logits.isfinite(), logits, torch.zeros_like(logits))


@pytest.mark.parametrize("backend", NATIVE)
def test_logsumexp_claims_no_gradient(backend: str) -> None:
    """It is for the way back. A gradient of zero through it would be a wrong one."""
    made = layer(device=device_of(backend))
    q = made.q.clone().requires_grad_()
    *_, lse = torch.ops.pft_bench.progressive_attention(*made.with_tensors(q=q).arguments(), backend)
    assert not lse.requires_grad


def test_what_is_eager() -> None:
    x = torch.zeros(1)
    assert is_eager(x)
    torch.func.vmap(lambda y: (assert_not_eager(y), y)[1])(torch.zeros(2))
    with torch.autograd.forward_ad.dual_level():
        assert not is_eager(x)


def assert_not_eager(x: Tensor) -> None:
    assert not is_eager(x)
