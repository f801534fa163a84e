"""Each attention variant against its definition, written out with plain matrices and loops over windows and heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pft_bench.reference import relative_position
from torch import Tensor

from pft_bench import backends
from pft_bench.model import PFT
from pft_bench.model.config import ATTENTIONS
from pft_bench.model.factorized import FREQUENCIES
from pft_bench.model.layers import region_map
from pft_bench.model.macs import layer_products
from pft_bench.model.variants import VARIANTS, VariantInputs, hashed_neighbours
from pft_bench.ops import ChainState, observe_layers

WINDOW, HEADS, DIM = 4, 2, 5
TOKENS = WINDOW**2


def inputs(seed: int = 0, backend: str = "dense", topk: int = 6, masked: bool = True) -> VariantInputs:
    """Four windows of an 8x8 image."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(4, HEADS, TOKENS, DIM, generator=generator) for _ in range(3))
    bias = torch.randn((2 * WINDOW - 1) ** 2, HEADS, generator=generator)
    region = region_map(8, 8, WINDOW, 2, torch.device("cpu")) if masked else None
    return VariantInputs(q, k, v, bias, region, None, topk, backend)


def logits(layer: VariantInputs) -> Tensor:
    """All logits in float64, [W, H, N, N]."""
    z = layer.q.double() @ layer.k.double().transpose(-1, -2) / math.sqrt(DIM)
    for i in range(TOKENS):
        for j in range(TOKENS):
            rel = relative_position(WINDOW, torch.tensor(i), torch.tensor(j))
            z[:, :, i, j] += layer.bias[rel].double()
            if layer.region is not None:
                z[:, :, i, j] -= 100 * (layer.region[:, i] != layer.region[:, j])[:, None]
    return z


def largest(z: Tensor, topk: int) -> Tensor:
    """Whether an entry is among the topk largest of its row."""
    return z >= z.sort(-1, descending=True).values[..., topk - 1 : topk]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_layers_on_their_own(backend: str, masked: bool) -> None:
    layer = inputs(backend=backend, masked=masked)
    z, v = logits(layer), layer.v.double()
    kept = largest(z, 6)
    wanted = {
        "dense": z.softmax(-1) @ v,
        "topk": (z.softmax(-1) * kept) @ v,
        "compute-then-select": z.masked_fill(~kept, -math.inf).softmax(-1) @ v,
    }
    for name, value in wanted.items():
        out, state = VARIANTS[name](layer)
        close(out, value)
        assert state.index is None, name
        assert state.queries is None, f"{name} hands something to the next layer"
    assert not torch.allclose(wanted["topk"], wanted["compute-then-select"])


def test_chains_add_logits_with_and_without_sparsity(backend: str) -> None:
    """Progressive keeps all tokens; the full attention restricts the second layer to what the first one kept."""
    first, second = inputs(0, backend), inputs(1, backend, topk=3)
    z1, z2 = logits(first), logits(second)
    v = second.v.double()
    _, state = VARIANTS["progressive"](first)
    close(
        VARIANTS["progressive"](VariantInputs(**(vars(second) | {"state": state})))[0],
        (z1 + z2).softmax(-1) @ v,
    )
    _, state = VARIANTS["pfa"](first)
    second_masked = logits(
        VariantInputs(**(vars(second) | {"region": None}))
    )  # the mask is that of the dense layers
    z = (z1 + second_masked).masked_fill(~largest(z1, 6), -math.inf)
    out, _ = VARIANTS["pfa"](VariantInputs(**(vars(second) | {"state": state})))
    close(out, (z.softmax(-1) * largest(z, 3)) @ v)


@pytest.mark.parametrize("masked", [False, True])
def test_rank_factorized_has_the_lowest_frequencies_of_its_bias(masked: bool) -> None:
    """Against dense logits with a bias that is the table's Fourier series, cut off, by loops over offsets."""
    layer = inputs(masked=masked)
    side = 2 * WINDOW - 1
    grid = torch.fft.fft2(layer.bias.double().view(side, side, HEADS), dim=(0, 1))
    kept = torch.zeros_like(grid)
    for y, x in FREQUENCIES:
        kept[y % side, x % side], kept[-y % side, -x % side] = (
            grid[y % side, x % side],
            grid[-y % side, -x % side],
        )
    smooth = torch.fft.ifft2(kept, dim=(0, 1)).real.reshape(side**2, HEADS)
    z = logits(VariantInputs(**(vars(layer) | {"bias": smooth})))
    out, state = VARIANTS["rank-factorized"](layer)
    torch.testing.assert_close(out.double(), z.softmax(-1) @ layer.v.double(), rtol=1e-4, atol=1e-4)
    assert state.index is None
    assert not torch.allclose(smooth, layer.bias.double() - layer.bias.double().mean(0)), (
        "nothing was cut off"
    )


def test_smooth_bias_is_kept_whole() -> None:
    """A table of low frequencies alone: the variant is standard attention."""
    layer = inputs(masked=False)
    at = torch.arange(2 * WINDOW - 1, dtype=torch.float32) * (2 * math.pi / (2 * WINDOW - 1))
    table = (at.cos()[:, None] + (2 * at).sin()[None]).reshape(-1, 1).expand(-1, HEADS).contiguous()
    layer = VariantInputs(**(vars(layer) | {"bias": table}))
    close(VARIANTS["rank-factorized"](layer)[0], logits(layer).softmax(-1) @ layer.v.double())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("topk", [1, 3, 6, 16])
def test_hashed_is_softmax_over_its_neighbours(backend: str, topk: int, masked: bool) -> None:
    layer = inputs(backend=backend, topk=topk, masked=masked)
    z = logits(layer)
    allowed = torch.ones_like(z, dtype=torch.bool)
    if topk < TOKENS:
        index = hashed_neighbours(layer.q, layer.k, topk)
        allowed = torch.zeros_like(allowed).scatter(-1, index, True)
    out, state = VARIANTS["hashed"](layer)
    close(out, z.masked_fill(~allowed, -math.inf).softmax(-1) @ layer.v.double())
    assert state.index is None


@pytest.mark.parametrize(("tokens", "count"), [(16, 1), (16, 3), (16, 15), (49, 10), (256, 64)])
def test_hashed_neighbours_are_distinct_and_every_group_has_its_own_rank(tokens: int, count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, 3, tokens, 4, generator=generator) for _ in range(2))
    index = hashed_neighbours(q, k, count)
    assert index.shape == (2, 3, tokens, count)
    assert (index >= 0).all()
    assert (index < tokens).all()
    assert (index.diff(dim=-1) > 0).all(), "keys of a row must be distinct and ascending"
    assert index.flatten(2).sort(-1).values[0, 0].unique().numel() > tokens // 2, "most keys are never seen"


def test_hashing_finds_keys_that_matter() -> None:
    """Tokens of 16 clusters: a quarter of the keys must hold far more than a quarter of the attention."""
    generator = torch.Generator().manual_seed(3)
    centres = 3 * torch.randn(16, 8, generator=generator)
    which = torch.randint(16, (1, 1, 256), generator=generator)
    q = centres[which] + 0.2 * torch.randn(1, 1, 256, 8, generator=generator)
    k = centres[which] + 0.2 * torch.randn(1, 1, 256, 8, generator=generator)
    attention = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    found = attention.gather(-1, hashed_neighbours(q, k, 64)).sum(-1).mean()
    assert found > 0.6, "chance finds a quarter"


def test_gradients_reach_q_k_v_and_bias(backend: str) -> None:
    for name in ATTENTIONS:
        layer = inputs(backend=backend)
        leaves = {n: getattr(layer, n).clone().requires_grad_() for n in ("q", "k", "v", "bias")}
        out, _ = VARIANTS[name](VariantInputs(**(vars(layer) | leaves)))
        out.square().sum().backward()
        exact = {n: getattr(layer, n).double().requires_grad_() for n in leaves}
        reference, _ = VARIANTS[name](VariantInputs(**(vars(layer) | exact | {"backend": "reference"})))
        reference.square().sum().backward()
        for n, leaf in leaves.items():
            torch.testing.assert_close(
                leaf.grad.double(), exact[n].grad, rtol=1e-3, atol=1e-4, msg=f"{name} {n}"
            )


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_models_of_every_variant_have_the_same_weights_and_different_images(
    make_model: Callable[..., PFT], image: Callable[..., Tensor], attention: str
) -> None:
    """With gradients (whole layers) and without (strips): one result; another one than the full model's."""
    model, full = make_model(attention=attention), make_model()
    assert model.state_dict().keys() == full.state_dict().keys()
    x = image(16, 12)
    with torch.no_grad():
        inferred, other = model(x), full(x)
    torch.testing.assert_close(model(x).detach(), inferred, rtol=1e-4, atol=1e-5)
    assert (attention == "pfa") == torch.equal(inferred, other)


@pytest.mark.parametrize(
    ("attention", "wanted"),
    [
        # (candidates, kept) of the six layers of SMALL: 16, 16, 9, 9, 5, 5 in chains 0, 1, 0, 0, 1, 0
        ("dense", [(16, 16)] * 6),
        ("topk", [(16, 16), (16, 16), (16, 9), (16, 9), (16, 5), (16, 5)]),
        ("progressive", [(16, 16)] * 6),
        ("pfa", [(16, 16), (16, 16), (16, 9), (9, 9), (16, 5), (9, 5)]),
        ("compute-then-select", [(16, 16), (16, 16), (16, 9), (16, 9), (16, 5), (16, 5)]),
        ("hashed", [(16, 16), (16, 16), (9, 9), (9, 9), (5, 5), (5, 5)]),
        ("rank-factorized", [(16, 16)] * 6),
    ],
)
def test_what_every_variant_computes_and_keeps(
    make_model: Callable[..., PFT],
    image: Callable[..., Tensor],
    attention: str,
    wanted: list[tuple[int, int]],
) -> None:
    seen = []

    def keep(given: backends.VariantInputs) -> None:
        seen.append((given.candidates, min(given.topk, given.candidates)))

    with observe_layers(keep), torch.no_grad():
        make_model(attention=attention)(image(8, 8))
    if attention != "rank-factorized":  # no layer of ours runs
        assert seen == wanted
    assert list(layer_products(make_model(attention=attention).config)) == wanted


def test_unknown_attention_is_refused(make_model: Callable[..., PFT]) -> None:
    with pytest.raises(ValueError, match=r"attention must be one of dense, topk, .* got 'sparse'"):
        make_model(attention="sparse")
    assert tuple(VARIANTS) == ATTENTIONS
    assert ChainState().is_dense
