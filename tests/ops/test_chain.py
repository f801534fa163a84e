"""Chains of layers: what is handed on equals masked dense attention and the paper's multiplied maps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from made import BACKENDS, NATIVE, SMALL, device_of, layer, normal
from torch import Tensor

import pft_bench
from pft_bench import ChainState, reference
from pft_bench.backends import Layer, get
from pft_bench.harness.check import ModelOracle, captured_layers, check_layers, failures

pytestmark = pytest.mark.usefixtures("one_thread")

CHAINS = {
    "stays dense": (16, 16, 16),
    "dense, then selects": (16, 16, 5),
    "selects at once": (5, 5, 5),
    "narrows step by step": (16, 9, 9, 4, 1),
    "keeps more than it has": (9, 16, 4),
    "one entry from the start": (1, 1),
}


@dataclass
class Inputs:
    """q, k, v, bias of every layer of a chain, and its region map."""

    layers: list[dict[str, Tensor]]
    region: Tensor | None

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        moved = [{name: t.to(device, dtype) for name, t in made.items()} for made in self.layers]
        return Inputs(moved, None if self.region is None else self.region.to(device))


def make(count: int, *, bias: bool = True, patterns: int = 0) -> Inputs:
    found = []
    region = None
    for number in range(count):
        made = layer(bias=bias, patterns=patterns, seed=10 * number, dtype=torch.float64)
        names = ("q", "k", "v", "bias") if bias else ("q", "k", "v")
        found.append({name: getattr(made, name).clone() for name in names})
        region = region if number else made.region
    return Inputs(found, region)


def run(inputs: Inputs, topks: tuple[int, ...], backend: str) -> tuple[list[Tensor], list[ChainState]]:
    outs, states = [], []
    state = None
    for made, topk in zip(inputs.layers, topks, strict=True):
        region = inputs.region if state is None or state.is_dense else None
        out, state = pft_bench.progressive_attention(
            **made, topk=topk, state=state, region=region, backend=backend
        )
        outs.append(out)
        states.append(state)
    return outs, states


def own_logits(made: dict[str, Tensor], region: Tensor | None) -> Tensor:
    """All logits of one layer by itself, [W, H, N, N]."""
    z = made["q"].shape[-1] ** -0.5 * made["q"] @ made["k"].mT
    if "bias" in made:
        token = torch.arange(16)
        z = z + made["bias"][reference.relative_position(4, token.unsqueeze(-1), token)].permute(2, 0, 1)
    if region is not None:
        rows = region.repeat(z.shape[0] // region.shape[0], 1)
        z = z - 100.0 * (rows.unsqueeze(-1) != rows.unsqueeze(-2)).unsqueeze(1)
    return z


def paper(inputs: Inputs, topks: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The paper's recurrence (arXiv 2503.20337, eq. 3 to 5) on full maps: outputs, maps before and after selection."""
    outs, maps, kept_maps = [], [], []
    before: Tensor | None = None
    dense = True
    for made, topk in zip(inputs.layers, topks, strict=True):
        z = own_logits(made, inputs.region if dense else None)
        if before is not None:
            z = z.masked_fill(before == 0, -torch.inf)
        attn = z.softmax(-1)
        if before is not None:
            attn = before * attn
            attn = attn / attn.sum(-1, keepdim=True)
        places = attn.topk(min(topk, 16)).indices
        kept = torch.zeros_like(attn).scatter(-1, places, attn.gather(-1, places))
        dense = dense and topk >= 16
        outs.append(kept @ made["v"])
        maps.append(attn)
        kept_maps.append(kept)
        before = kept
    return outs, maps, kept_maps


@pytest.mark.parametrize("patterns", [0, 2], ids=["one region", "masked regions"])
@pytest.mark.parametrize("topks", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_equals_the_papers_multiplied_and_renormalised_maps(
    backend: str, topks: tuple[int, ...], patterns: int
) -> None:
    inputs = make(len(topks), patterns=patterns)
    wide = torch.float64 in get(backend).dtypes
    dtype = torch.float64 if wide else torch.float32
    outs, states = run(inputs.to(device_of(backend), dtype), topks, backend)
    exact_outs, maps, kept_maps = paper(inputs, topks)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if wide else {"rtol": 1e-4, "atol": 1e-5}
    for out, state, exact, attn, kept in zip(outs, states, exact_outs, maps, kept_maps, strict=True):
        torch.testing.assert_close(out.cpu().double(), exact, **tolerance)
        assert state.is_dense == bool((kept > 0).all() and kept.shape == attn.shape and (kept == attn).all())
        if state.index is not None:
            assert state.logits is not None
            places = state.index.cpu().long()
            marked = torch.zeros_like(kept, dtype=torch.bool).scatter(-1, places, True)
            assert torch.equal(marked, kept > 0)
            # the handed-on logits are the kept map's logarithm, relative to the map's largest entry
            expected = (attn / attn.amax(-1, keepdim=True)).gather(-1, places)
            torch.testing.assert_close(state.logits.cpu().double().exp(), expected, **tolerance)


def unmasked_exact(inputs: Inputs, topks: tuple[int, ...]) -> list[Tensor]:
    """The chain as one masked dense computation on accumulated logits."""
    outs = []
    total: Tensor | None = None
    dense = True
    for made, topk in zip(inputs.layers, topks, strict=True):
        z = own_logits(made, inputs.region if dense else None)
        total = z if total is None else total + z
        attn = total.softmax(-1)
        places = total.topk(min(topk, 16)).indices
        mask = torch.zeros_like(total, dtype=torch.bool).scatter(-1, places, True) & total.isfinite()
        outs.append((attn * mask) @ made["v"])
        total = total.masked_fill(~mask, -torch.inf)
        dense = dense and topk >= 16
    return outs


@pytest.mark.parametrize("topks", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_chain_equal_those_of_masked_dense_attention(
    backend: str, topks: tuple[int, ...]
) -> None:
    inputs = make(len(topks), patterns=2)
    device = device_of(backend)

    def gradients(moved: Inputs, outs: list[Tensor]) -> list[Tensor]:
        total = sum(
            (out * normal(*out.shape, seed=7 + i).to(out.device, out.dtype)).sum()
            for i, out in enumerate(outs)
        )
        leaves = [t for made in moved.layers for t in made.values()]
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    def leaves(moved: Inputs) -> Inputs:
        return Inputs([{n: t.requires_grad_() for n, t in m.items()} for m in moved.layers], moved.region)

    exact = leaves(make(len(topks), patterns=2))
    wanted = gradients(exact, unmasked_exact(exact, topks))
    moved = leaves(inputs.to(device, torch.float32))
    for got, expected in zip(gradients(moved, run(moved, topks, backend)[0]), wanted, strict=True):
        scale = max(float(expected.abs().max()), 0.1)  # gradients of a row with one entry are zero
        torch.testing.assert_close(got.cpu().double() / scale, expected / scale, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dense_chain_is_one_layer_on_concatenated_queries_and_keys(backend: str) -> None:
    inputs = make(3, patterns=2).to(device_of(backend), torch.float32)
    outs, states = run(inputs, (16, 16, 7), backend)
    scale = 13**-0.5
    joined = Layer(
        q=torch.cat([m["q"] for m in inputs.layers], -1),
        k=torch.cat([m["k"] for m in inputs.layers], -1),
        v=inputs.layers[-1]["v"],
        bias=sum(m["bias"] for m in inputs.layers),  # type: ignore[arg-type]
        region=inputs.region,
        index=None,
        logits=None,
        scale=scale,
        region_penalty=300.0,
        topk=7,
    )
    out, _, logits, _ = get(backend).attention_forward(joined)
    torch.testing.assert_close(outs[-1], out)
    torch.testing.assert_close(states[-1].logits, logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_of_only_some_layers_is_added_once(backend: str) -> None:
    device = device_of(backend)
    made = make(2).to(device, torch.float32).layers
    plain = {name: t for name, t in made[1].items() if name != "bias"}
    _, first = pft_bench.progressive_attention(**made[0], topk=16, backend=backend)
    out, _ = pft_bench.progressive_attention(**plain, topk=16, state=first, backend=backend)
    _, first = pft_bench.progressive_attention(
        **{name: t for name, t in made[0].items() if name != "bias"}, topk=16, backend=backend
    )
    other, _ = pft_bench.progressive_attention(
        **plain, bias=made[0]["bias"], topk=16, state=first, backend=backend
    )
    torch.testing.assert_close(out, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_built_by_hand_in_any_order_is_the_same_state(backend: str) -> None:
    device = device_of(backend)
    made = layer(device=device, candidates=9, topk=9)
    order = torch.rand(made.index.shape, generator=torch.Generator().manual_seed(1)).argsort(-1).to(device)
    shuffled = made.index.gather(-1, order).long(), made.logits.gather(-1, order)
    results = []
    for places, logits in ((made.index, made.logits), shuffled):
        state = ChainState.sparse(places, logits, 16)
        out, after = pft_bench.progressive_attention(
            made.q, made.k, made.v, topk=4, state=state, backend=backend
        )
        results.append((out, after.index, after.logits))
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_can_be_used_twice(backend: str) -> None:
    """Two continuations of one chain must not disturb each other (a shared buffer would)."""
    inputs = make(2).to(device_of(backend), torch.float32)
    for topk in (16, 5):
        _, state = pft_bench.progressive_attention(**inputs.layers[0], topk=topk, backend=backend)
        first, _ = pft_bench.progressive_attention(**inputs.layers[1], topk=4, state=state, backend=backend)
        again, _ = pft_bench.progressive_attention(**inputs.layers[1], topk=4, state=state, backend=backend)
        assert torch.equal(first, again)


@pytest.mark.parametrize("backend", NATIVE)
def test_second_derivatives_of_a_layer_are_refused_and_not_zero(backend: str) -> None:
    made = layer(device=device_of(backend))
    q = made.q.clone().requires_grad_()
    out, _ = pft_bench.progressive_attention(q, made.k, made.v, topk=5, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"no second derivative on backend '{backend}'"):
        grad.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer_of_a_real_model_passes_its_check(backend: str) -> None:
    config = SMALL | {"upsampler": "pixelshuffledirect"}
    torch.manual_seed(0)
    model = pft_bench.PFT(**config, backend=backend).to(device_of(backend)).eval()
    x = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(0)).to(device_of(backend))
    layers = captured_layers(lambda: model(x))
    steps = {
        (made.q.shape[-1] // 4, 16 if made.index is None else made.index.shape[-1], made.topk)
        for made in layers
    }
    assert steps == {(1, 16, 16), (2, 16, 9), (1, 9, 9), (2, 16, 5), (1, 9, 5)}
    assert any(made.region is not None for made in layers)
    assert not failures(check_layers(backend, layers, train=True))
    oracle = ModelOracle(model, x)
    assert oracle.yardstick < 1e-5


def one_layer(topk: int, state: ChainState | None, backend: str = "cpu") -> tuple[Tensor, ChainState]:
    made = make(1).to("cpu", torch.float32).layers[0]
    return pft_bench.progressive_attention(**made, topk=topk, state=state, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_a_state_made_by_hand_may_lie_in_memory_in_any_order(backend: str) -> None:
    given = one_layer(7, None)[1]
    assert given.index is not None
    assert given.logits is not None
    wanted, after = one_layer(3, given, backend)
    strided = given.index.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    for index, logits in ((strided, given.logits), (given.index.flip(-1), given.logits.flip(-1))):
        out, state = one_layer(3, ChainState(index=index, logits=logits, num_keys=16), backend)
        assert torch.equal(out, wanted)
        assert torch.equal(state.index, after.index)
        assert torch.equal(state.logits, after.logits)


def test_the_states_of_a_chain_are_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's inner loop pays nothing for the check of states made by hand."""
    monkeypatch.setattr(ChainState, "sparse", lambda *_: pytest.fail("checked again"))
    state = None
    for topk in (16, 5, 5, 4):
        state = one_layer(topk, state)[1]
    with pytest.raises(pytest.fail.Exception, match="checked again"):
        one_layer(4, ChainState(index=state.index, logits=state.logits, num_keys=16))
