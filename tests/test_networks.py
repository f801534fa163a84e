"""The compared networks: published counts and keys, attention against dense float64 formulations, weights of files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pft_bench.apps.systems import SYSTEMS, likeness_db, load_published, macs, parameters, weights_by_system
from pft_bench.apps.systems.drsformer import SHARES, DRSformer, TransformerBlock, selected_attention
from pft_bench.apps.systems.ipg import IPG
from pft_bench.apps.systems.ipg_graph import (
    Grapher,
    detail,
    groups,
    linked_attention,
    links,
    samples,
    ungroup,
)
from pft_bench.apps.systems.nlsn import NLSN, buckets, chunked_attention
from pft_bench.apps.systems.peers import make_system

SMALL: dict[str, Callable[[], nn.Module]] = {
    "IPG": lambda: IPG(dim=60, depths=(2,), heads=2, window=4, sample=8, degree=8),
    "NLSN": lambda: NLSN(dim=8, blocks=8, chunk=8),
    "DRSformer": lambda: DRSformer(dim=4, blocks=(1, 1, 1, 1), heads=(1, 1, 2, 2)),
}
# Some of the names under which each network's weights are published, and their shapes.
KEYS = {
    "IPG": {
        "patch_embed.norm.weight": [180],
        "layers.5.residual_group.blocks.3.grapher.logit_scale": [6, 1, 1],
        "layers.0.residual_group.blocks.0.grapher.proj_sample.weight": [360, 180],
        "layers.0.residual_group.blocks.0.grapher.cpb_mlp.2.weight": [6, 512],
        "layers.0.residual_group.blocks.0.grapher.relative_coords_table": [1, 47, 47, 2],
        "layers.0.residual_group.blocks.0.grapher.relative_position_index": [256, 1024],
        "layers.0.residual_group.blocks.5.mlp.dwconv.depthwise_conv.0.weight": [720, 1, 3, 3],
        "layers.0.residual_group.blocks.5.conv_block.cab.3.attention.1.weight": [6, 180, 1, 1],
        "layers.4.conv.weight": [180, 180, 3, 3],
        "conv_before_upsample.0.weight": [64, 180, 3, 3],
        "upsample.0.weight": [256, 64, 3, 3],
    },
    "NLSN": {
        "sub_mean.weight": [3, 3, 1, 1],
        "head.0.weight": [256, 3, 3, 3],
        "body.0.conv_match.0.weight": [64, 256, 3, 3],
        "body.1.body.0.weight": [256, 256, 3, 3],
        "body.9.conv_assembly.0.weight": [256, 256, 1, 1],
        "body.36.conv_assembly.0.bias": [256],
        "body.37.weight": [256, 256, 3, 3],
        "tail.0.0.weight": [1024, 256, 3, 3],
        "tail.1.weight": [3, 256, 3, 3],
        "add_mean.bias": [3],
    },
    "DRSformer": {
        "patch_embed.proj.weight": [48, 3, 3, 3],
        "encoder_level0.layers.0.ca_fc.2.weight": [32, 64],
        "encoder_level0.layers.1.preprocess.op.0.weight": [48, 48, 1, 1],
        "encoder_level0.layers.1._ops.3._ops.2.op.3.weight": [48, 1, 5, 5],
        "encoder_level0.layers.1._ops.0._out.0.weight": [48, 384, 1, 1],
        "encoder_level1.3.attn.temperature": [1, 1, 1],
        "encoder_level1.0.norm1.body.weight": [48],
        "latent.7.attn.attn4": [1],
        "latent.0.ffn.dwconv5x5_1.weight": [1021, 2, 5, 5],
        "down3_4.body.0.weight": [96, 192, 3, 3],
        "up2_1.body.0.weight": [192, 96, 3, 3],
        "reduce_chan_level2.weight": [96, 192, 1, 1],
        "refinement.layers.1._ops.0._ops.6.op.1.weight": [96, 96, 1, 1],
        "output.weight": [3, 96, 3, 3],
    },
}
COUNTS = {"IPG": 18_129_887, "NLSN": 40_729_603 + 5 * 213_312, "DRSformer": 33_655_424}


@pytest.fixture(scope="module")
def full() -> dict[str, nn.Module]:
    """The networks as published, shapes alone."""
    with torch.device("meta"):
        return {"IPG": IPG(), "NLSN": NLSN(), "DRSformer": DRSformer()}


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_networks_have_the_published_counts_and_keys(full: dict[str, nn.Module]) -> None:
    for name, network in full.items():
        assert parameters(network) == COUNTS[name], name
        state = network.state_dict()
        assert {key: list(state[key].shape) for key in KEYS[name]} == KEYS[name]


def test_stated_counts_are_the_published_ones() -> None:
    """By the authors' own conventions, to the two decimals that are published."""
    stated = {system.name: system for system in SYSTEMS if system.stated_macs}
    assert set(stated) == {"ATD", "IPG"}
    for system in stated.values():
        assert round(system.stated_macs(360, 640) / 1e12, 2) == system.published.macs_t, system.name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(9, 13)])
def test_networks_take_any_size_and_repeat_themselves(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = SMALL[name]().eval()
    scale = next(system.scale for system in SYSTEMS if system.name == name)
    with torch.no_grad():
        first, second = network(image(*size)), network(image(*size))
    assert first.shape == (1, 3, size[0] * scale, size[1] * scale)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert macs(network, *size) > 0


def test_every_parameter_takes_part() -> None:
    """A weight that no output depends on would be a module that the network forgot to call."""
    for name, make in SMALL.items():
        torch.manual_seed(0)
        network = make()
        network(image(8, 8)).square().sum().backward()
        dead = [
            key for key, value in network.named_parameters() if value.requires_grad and value.grad is None
        ]
        assert dead == [], name


def test_ipg_groups_are_undone_and_samples_surround_them() -> None:
    x = torch.arange(16 * 24, dtype=torch.float64).view(1, 16, 24, 1)
    for spread in (False, True):
        cut = groups(x, 4, spread)
        assert torch.equal(ungroup(cut, 4, 16, 24, spread), x)
        seen = samples(x, 4, 8, spread)
        assert seen.shape == (24, 64, 1)
        for own, others in zip(cut, seen, strict=True):
            assert set(own.flatten().tolist()) <= set(others.flatten().tolist()), "a group is in its sample"
    rows = (groups(x, 4, True)[1, :, 0] // 24).view(4, 4)
    assert rows[:, 0].tolist() == [0, 4, 8, 12], "spread over the image, every fourth row"


def test_ipg_links_are_the_nearest_and_as_many_as_detail_asks() -> None:
    generator = torch.Generator().manual_seed(1)
    nodes, others = torch.randn(2, 30, 6, generator=generator), torch.randn(2, 200, 6, generator=generator)
    weight = torch.rand(2, 30, generator=generator)
    linked = links(nodes, others, weight, 20, steps=24)
    cosine = torch.cosine_similarity(nodes[:, :, None].double(), others[:, None].double(), dim=-1)
    wanted = (weight / weight.sum(1, keepdim=True) * 600).clamp(
        1, 200
    )  # the bisection may end on either side
    for own, row, count in zip(linked.flatten(0, 1), cosine.flatten(0, 1), wanted.flatten(), strict=True):
        kept = int(own.sum())
        assert math.floor(count) <= kept <= math.floor(count) + 1, (kept, float(count))
        assert torch.equal(row.topk(kept).indices.sort().values, own.nonzero().flatten())


def test_ipg_detail_is_what_halving_loses() -> None:
    smooth, sharp = torch.full((1, 8, 8, 2), 0.3), torch.zeros(1, 8, 8, 2)
    sharp[0, 3, 4] = 1
    assert detail(smooth).abs().max() < 1e-6
    found = detail(sharp)[0]
    assert found.argmax() == 3 * 8 + 4
    assert found[3, 4] > 1, "two channels lose more than half each"


def test_ipg_attention_is_softmax_over_the_links() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, n, 5, generator=generator) for n in (7, 11, 11))
    linked = torch.rand(2, 7, 11, generator=generator) < 0.5
    linked[:, :, 0] = True
    scale = torch.tensor([1.0, 5.0, 10.0]).view(3, 1, 1)
    bias = torch.randn(3, 7, 11, generator=generator)
    out = linked_attention(q, k, v, linked, scale, bias)
    for g, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(7)):
        at = linked[g, i].nonzero().flatten()
        cosine = torch.cosine_similarity(q[g, h, i].double()[None], k[g, h, at].double(), dim=-1)
        weights = (scale[h, 0, 0].double() * cosine + bias[h, i, at].double()).softmax(0)
        torch.testing.assert_close(
            out[g, h, i].double(), weights @ v[g, h, at].double(), rtol=1e-5, atol=1e-6
        )


def test_ipg_bias_depends_on_the_offset_alone() -> None:
    torch.manual_seed(0)
    bias = Grapher(8, 2, 4, 8).bias().detach()
    own, other = torch.cartesian_prod(*2 * [torch.arange(4)]), torch.cartesian_prod(*2 * [torch.arange(8)])
    seen: dict[tuple[int, int], Tensor] = {}
    for i, a in enumerate(own.tolist()):
        for j, b in enumerate(other.tolist()):
            offset = (b[0] - a[0], b[1] - a[1])
            torch.testing.assert_close(bias[:, i, j], seen.setdefault(offset, bias[:, i, j]))
    assert len(seen) == 11**2


@pytest.mark.parametrize("length", [40, 37, 5])
def test_nlsn_attention_is_one_softmax_over_all_sortings(length: int) -> None:
    """Dense: each pair counts as often as key and query stand in neighbouring chunks, over all sortings together."""
    generator = torch.Generator().manual_seed(3)
    x, v = torch.randn(1, length, 6, generator=generator), torch.randn(1, length, 4, generator=generator)
    codes, chunk = buckets(x, 3, 4), 8
    out = chunked_attention(x, v, codes, chunk)
    counts = torch.zeros(length, length, dtype=torch.float64)
    for row in codes[0]:
        order = sorted(range(length), key=lambda i, row=row: (int(row[i]), i))
        missing = -length % chunk
        filled = order + [order[max(place - missing, 0)] for place in range(length, length + missing)]
        chunks = [filled[i : i + chunk] for i in range(0, len(filled), chunk)]
        for number, own in enumerate(chunks):
            keys = own + chunks[number - 1] + chunks[(number + 1) % len(chunks)]
            for i in own[: length - number * chunk]:
                for j in keys:
                    counts[i, j] += 1
    wide = x[0].double()
    z = wide @ torch.nn.functional.normalize(wide, dim=-1).T
    weights = counts * z.exp()
    exact = weights / weights.sum(1, keepdim=True) @ v[0].double()
    torch.testing.assert_close(out[0].double(), exact, rtol=1e-5, atol=1e-6)


def test_nlsn_hashes_like_with_like() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 50, 16, generator=generator)
    codes = buckets(torch.cat((x, 3 * x, -x), 1), 2, 8)
    assert torch.equal(codes[..., :50], codes[..., 50:100]), "length does not matter"
    assert torch.equal((codes[..., :50] + 4) % 8, codes[..., 100:]), "opposites fall to opposite buckets"
    assert len(codes.unique()) == 8


def test_drsformer_attention_is_four_softmaxes_over_the_largest() -> None:
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 2, 12, 30, generator=generator) for _ in range(3))
    temperature, shares = torch.tensor([0.5, 20.0]).view(2, 1, 1), torch.tensor([0.2, 0.1, -0.3, 0.4])
    out = selected_attention(q, k, v, temperature, shares)
    z = (
        torch.cosine_similarity(q[..., :, None, :].double(), k[..., None, :, :].double(), dim=-1)
        * temperature
    )
    exact = torch.zeros_like(v, dtype=torch.float64)
    for share, part in zip(SHARES, shares, strict=True):
        least = z.sort(-1, descending=True).values[..., int(12 * share) - 1, None]
        exact += part * (z.masked_fill(z < least, -math.inf).softmax(-1) @ v.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


def test_drsformer_block_keeps_small_widths() -> None:
    block = TransformerBlock(3, 3)
    assert block(torch.rand(1, 3, 4, 4)).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_published_files_load(name: str, tmp_path: Path) -> None:
    """Under the authors' keys, as torch.save writes them, with and without what follows from the shapes."""
    torch.manual_seed(1)
    trained, other = SMALL[name](), SMALL[name]()
    state = trained.state_dict()
    learned = {key: state[key] for key, _ in trained.named_parameters()}
    content = {"IPG": {"params_ema": state}, "NLSN": state, "DRSformer": {"params": learned}}[name]
    torch.save(content, tmp_path / "published.pth")
    load_published(other, tmp_path / "published.pth")
    for key, value in trained.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"params": SMALL["NLSN"]().state_dict()}, file)
    with pytest.raises(ValueError, match=r"other\.pth: weights must be those of .* missing .* unknown"):
        load_published(SMALL["DRSformer"](), file)
    state = SMALL["NLSN"]().state_dict()
    state["head.0.weight"] = state["head.0.weight"][:4]
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"head.0.weight must be \[8, 3, 3, 3\], got \[4, 3, 3, 3\]"):
        load_published(SMALL["NLSN"](), file)


def test_weights_are_named_by_system(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({}, file)
    assert weights_by_system([f"ipg={file}", f"HAT={file}"], SYSTEMS) == {"IPG": file, "HAT": file}
    for text in ("IPG", "IPG=", f"SAT={file}", f"={file}"):
        with pytest.raises(ValueError, match="--weights must be NAME=FILE with a NAME of SwinIR, HAT"):
            weights_by_system([text], SYSTEMS)
    with pytest.raises(ValueError, match="once, got IPG twice"):
        weights_by_system([f"IPG={file}", f"ipg={file}"], SYSTEMS)
    with pytest.raises(FileNotFoundError, match="--weights must be a checkpoint"):
        weights_by_system([f"IPG={tmp_path / 'none.pth'}"], SYSTEMS)


def test_likeness_tells_an_enlargement_from_noise() -> None:
    x = torch.linspace(0, 1, 12 * 12).view(1, 1, 12, 12).expand(1, 3, -1, -1)
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert likeness_db(enlarged, x) > 25
    assert likeness_db(torch.rand(1, 3, 24, 24), x) < 15
    assert likeness_db(x, x) == math.inf


def test_systems_without_a_model_say_where_their_numbers_are_from() -> None:
    sat = next(system for system in SYSTEMS if system.name == "SAT")
    with pytest.raises(ValueError, match="SAT has no model here: table 1 of SAT"):
        make_system(sat)
