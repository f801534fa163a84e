"""The module: options, input sizes, schedule, backends, training helpers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pft_bench
from pft_bench.common import stages
from pft_bench.model import PFT, generated_weights
from pft_bench.model.layers import relative_position_index

OPTIONS = {
    "pixelshuffle x2": {},
    "pixelshuffle x3": {"upscale": 3},
    "pixelshuffle x4": {"upscale": 4},
    "pixelshuffle x8": {"upscale": 8},
    "pixelshuffledirect x3": {"upsampler": "pixelshuffledirect", "upscale": 3},
    "nearest+conv": {"upsampler": "nearest+conv", "upscale": 4},
    "no upsampler": {"upsampler": "", "upscale": 1},
    "no upsampler, upscale has no meaning": {"upsampler": "", "upscale": 2},
    "3conv": {"resi_connection": "3conv"},
    "position embedding": {"ape": True, "img_size": (12, 8)},
    "position embedding of patches": {"ape": True, "img_size": 24, "patch_size": 2},
    "no norm of patches": {"patch_norm": False},
    "no bias in qkv": {"qkv_bias": False},
    "checkpointing": {"use_checkpoint": True},
    "image range": {"img_range": 255.0},
    "another norm": {"norm_layer": nn.RMSNorm},
    "one channel": {"in_chans": 1},
    "six channels, no upsampler": {"in_chans": 6, "upsampler": "", "upscale": 1},
    "odd windows": {"window_size": 3, "num_topk": (9, 9, 4, 4, 2, 1)},
    "blocks of one layer: no shifted chain": {"depths": (1, 1), "num_topk": (16, 4)},
    "wide: no shared bias": {"embed_dim": 102, "num_heads": 2},
    "one head": {"num_heads": 1},
    "fractional mlp ratio": {"mlp_ratio": 1.3},
    "topk beyond the window": {"num_topk": (1024, 1024, 16, 16, 16, 8)},
}


def same(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return ((got - want).norm() <= tolerance * want.norm()).item()


@pytest.mark.parametrize("keywords", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_runs_and_round_trips(keywords, make_model, image):
    model = make_model(**keywords).eval()
    height, width = (12, 12) if "img_size" in keywords and keywords["img_size"] == 24 else (12, 8)
    x = image(height, width, channels=model.config.in_chans)
    y = model(x)
    scale = keywords.get("upscale", 2) if keywords.get("upsampler") != "" else 1
    assert y.shape == (1, model.config.in_chans, height * scale, width * scale)
    assert y.isfinite().all()
    assert y.is_contiguous()
    y.abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    other = PFT.from_config(model.config, "dense").eval()
    with torch.no_grad():
        assert not same(other(x), y)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), y)


def test_options_change_the_result(make_model, image):
    """A keyword that is read but not used would pass the round trip."""
    base = make_model()(image())
    for keywords in (
        {"img_range": 2.0},
        {"norm_layer": nn.RMSNorm},
        {"patch_norm": False},
        {"ape": True, "img_size": (12, 8)},
    ):
        assert not same(make_model(**keywords)(image()), base), keywords


def test_image_range_scales_the_input_and_the_output(make_model, image):
    """With the first and last convolution scaled against it (by powers of two: exactly) nothing changes."""
    plain, scaled = make_model(), make_model(img_range=4.0)
    with torch.no_grad():
        scaled.conv_first.weight /= 4
        scaled.conv_last.weight *= 4
        scaled.conv_last.bias *= 4
    assert torch.equal(scaled(image()), plain(image()))


def test_mean_is_that_of_the_dataset_for_rgb_only(make_model):
    assert make_model().mean.flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert make_model(in_chans=1).mean.flatten().tolist() == [0.0]
    assert "mean" not in make_model().state_dict()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 4), (4, 4), (5, 7), (8, 4), (13, 6)])
def test_any_input_size(size, make_model, image):
    """Smaller than a window, than half of one, exact multiples, one more, one less."""
    x = image(*size)
    y = make_model()(x)
    assert y.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert y.isfinite().all()


def test_padding_mirrors_the_image(make_model, image):
    """An image padded by hand gives the same pixels as the model's own padding."""
    model, x = make_model(), image(6, 5)
    padded = torch.cat([x, x.flip(2)], 2)[:, :, :8]
    padded = torch.cat([padded, padded.flip(3)], 3)[..., :8]
    assert torch.equal(model(x), model(padded)[..., :12, :10])


def test_batch_of_two_is_two_batches_of_one(make_model, image, backend):
    """Catches windows of different images mixed up, and region rows taken for the wrong window."""
    model, x = make_model(backend=backend).eval(), image(9, 13, batch=2)
    with torch.no_grad():
        assert same(model(x), torch.cat([model(x[:1]), model(x[1:])]), 1e-5)


def test_empty_batch(make_model, image):
    assert make_model()(image(batch=0)).shape == (0, 3, 24, 16)


def test_activation_checkpointing_gives_the_same_step(make_model, image):
    """The recomputed layers must see the chain state that they saw the first time."""
    steps = []
    for use_checkpoint in (False, True):
        model = make_model(torch.float64, use_checkpoint=use_checkpoint).train()
        x = image(9, 7, dtype=torch.float64).requires_grad_()
        loss = model(x).square().mean()
        loss.backward()
        steps.append([loss, x.grad, *(p.grad for p in model.parameters())])
    assert all(same(a, b, 1e-12) for a, b in zip(*steps, strict=True))


def test_checkpointing_keeps_less(make_model, image):
    kept = []
    for use_checkpoint in (False, True):
        model, saved = make_model(use_checkpoint=use_checkpoint).train(), 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(image(16, 16))
        kept.append(saved)
    assert kept[1] < kept[0] / 2


def test_schedule_can_be_changed(make_model, image):
    model, x = make_model().eval(), image()
    first = model(x)
    model.num_topk = (16, 16, 2, 2, 1, 1)
    assert model.num_topk == model.config.num_topk == (16, 16, 2, 2, 1, 1)
    sparser = model(x)
    assert not same(sparser, first)
    assert torch.equal(sparser, make_model(num_topk=(16, 16, 2, 2, 1, 1))(x))
    model.num_topk = (16, 16, 9, 9, 5, 5)
    assert torch.equal(model(x), first)


def test_schedule_left_out_keeps_everything(make_model, image):
    assert torch.equal(make_model(num_topk=())(image()), make_model(num_topk=(16,) * 6)(image()))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((16, 16, 9), r"num_topk must have one entry for each of the 6 layers .*, got 3"),
        ((), r"num_topk must have one entry for each of the 6 layers, got 0"),
        ((16, 16, 9, 9, 9, 10), "num_topk must not increase along a chain"),
        ((16, 16, 9, 9, 5, 0), "every entry of num_topk must be at least 1, got 0"),
    ],
)
def test_bad_schedule_leaves_the_model_as_it_was(schedule, message, make_model):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.num_topk = schedule
    assert (
        [layer.topk for layer in model.transformer_layers()] == list(model.num_topk) == [16, 16, 9, 9, 5, 5]
    )


def test_backend_can_be_changed(make_model, image):
    model, x = make_model(backend="dense").eval(), image()
    first = model(x)
    model.backend = "reference"
    assert model.backend == "reference"
    assert same(model(x), first, 1e-5)
    with pytest.raises(ValueError, match=r"backend must be 'auto' or one of .*, got 'fastest'"):
        model.backend = "fastest"
    with pytest.raises(TypeError, match="backend must be a string, got 3"):
        model.backend = 3
    assert model.backend == "reference"


def test_backend_reaches_every_layer(make_model, image, monkeypatch):
    seen = []
    attend = pft_bench.ops.progressive_attention

    def spy(*args, backend, **keywords):
        seen.append(backend)
        return attend(*args, backend=backend, **keywords)

    monkeypatch.setattr(pft_bench.ops, "progressive_attention", spy)
    make_model(backend="reference")(image())
    assert seen == ["reference"] * 6


def test_stored_position_index_is_never_used(make_model, image):
    model, x = make_model(), image()
    first = model(x)
    model.relative_position_index_SA.fill_(-1)
    assert torch.equal(model(x), first)


def test_position_index_matches_its_definition():
    index = relative_position_index(3)
    assert index.shape == (9, 9)
    assert index.dtype == torch.int64
    for i in range(9):
        for j in range(9):
            assert index[i, j] == (i // 3 - j // 3 + 2) * 5 + (i % 3 - j % 3 + 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, make_model, image):
    x = image()
    y = make_model(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert same(y.float(), make_model()(x), {torch.float16: 5e-3, torch.bfloat16: 5e-2}.get(dtype, 1e-5))


def test_autocast(make_model, image):
    model, x = make_model(), image()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.float().square().mean().backward()
    assert same(y.float(), model(x), 5e-2)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_copies_and_pickles(make_model, image):
    model, x = make_model().eval(), image()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.config == model.config
        assert other.backend == "dense"


def test_training_after_inference_mode(make_model, image):
    """A tensor cached in inference mode could not be saved for the backward pass."""
    model = make_model(window_size=7)  # a size that no other test has put into a cache
    with torch.inference_mode():
        model(image())
    model(image()).mean().backward()


def test_input_is_not_changed(make_model, image):
    x = image()
    before = x.clone()
    make_model(img_range=255.0)(x)
    assert torch.equal(x, before)


def test_stages_cover_the_model(make_model, image):
    with torch.inference_mode(), stages.record() as times:
        make_model().eval()(image())
    assert {"projection", "lepe", "ffn", "conv", "norm", "window"} <= set(times.seconds)


def test_generated_weights_do_not_depend_on_the_order_or_the_state_of_any_generator(make_model):
    torch.manual_seed(1)
    first = generated_weights(make_model())
    torch.manual_seed(2)
    second = generated_weights(make_model())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["relative_position_index_SA"], relative_position_index(4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: torch.rand(3, 8, 8),
            ValueError,
            r"x must be \[B, 3, h, w\] with h, w >= 1, got \(3, 8, 8\)",
        ),
        (lambda: torch.rand(1, 1, 8, 8), ValueError, r"x must be \[B, 3, h, w\]"),
        (lambda: torch.rand(1, 3, 0, 8), ValueError, r"x must be \[B, 3, h, w\]"),
        (lambda: [[1.0]], ValueError, r"x must be \[B, 3, h, w\] with h, w >= 1, got list"),
        (
            lambda: torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            ValueError,
            "x must have the dtype of the weights",
        ),
        (lambda: torch.rand(1, 3, 8, 8).double(), ValueError, "x must have the dtype of the weights"),
        (lambda: torch.rand(1, 3, 8, 8, device="meta"), ValueError, "x must be on the device of the weights"),
    ],
)
def test_bad_input(make, error, message, make_model):
    with pytest.raises(error, match=message):
        make_model()(make())


def test_position_embeddings_fix_the_size(make_model, image):
    model = make_model(ape=True, img_size=(12, 8))
    assert model(image(11, 6)).shape == (1, 3, 22, 12)
    with pytest.raises(ValueError, match=r"x must have the size .* \(12, 8\) .* got \(12, 12\)"):
        model(image(12, 12))
