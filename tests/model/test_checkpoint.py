"""load(): configurations inferred from weights, file formats, and what a wrong file is told."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import pft_bench
from pft_bench.model import infer_config, load, read_weights

VARIANTS = {
    "pixelshuffle x2": {},
    "pixelshuffle x3": {"upscale": 3},
    "pixelshuffle x4": {"upscale": 4},
    "pixelshuffledirect x3": {"upsampler": "pixelshuffledirect", "upscale": 3},
    "pixelshuffledirect x4, one channel": {"upsampler": "pixelshuffledirect", "upscale": 4, "in_chans": 1},
    "nearest+conv": {"upsampler": "nearest+conv", "upscale": 4},
    "no upsampler": {"upsampler": "", "upscale": 1},
    "3conv": {"resi_connection": "3conv"},
    "position embedding": {"ape": True, "img_size": 12},
    "no norm of patches": {"patch_norm": False},
    "no bias in qkv": {"qkv_bias": False},
    "uneven depths": {"depths": (1, 2, 3)},
    "kernel, window": {"convffn_kernel_size": 7, "window_size": 5, "num_topk": (25, 25, 9, 9, 9, 9)},
    "fractional mlp ratio": {"mlp_ratio": 1.3},
    "mlp ratio: int(22 * (49 / 22)) is 48": {"embed_dim": 22, "num_heads": 2, "mlp_ratio": 49.5 / 22},
    "heads told by the bias": {"embed_dim": 102, "num_heads": 6},
}


@pytest.mark.parametrize("keywords", VARIANTS.values(), ids=VARIANTS.keys())
def test_configuration_is_inferred(keywords, make_model, tmp_path, image):
    model = make_model(**keywords).eval()
    torch.save({"params": model.state_dict()}, tmp_path / "net.pth")
    given = {"num_topk": model.num_topk}
    if model.config.bias_heads == 1:
        given["num_heads"] = model.config.num_heads
    loaded = load(tmp_path / "net.pth", backend="dense", **given)
    ours, theirs = vars(loaded.config) | {}, vars(model.config) | {}
    assert int(ours["embed_dim"] * ours.pop("mlp_ratio")) == int(
        theirs["embed_dim"] * theirs.pop("mlp_ratio")
    )
    if not keywords.get("ape"):
        del ours["img_size"], theirs["img_size"]  # no weight depends on it
    assert ours == theirs
    x = image(12, 12, channels=model.config.in_chans)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training


@pytest.mark.parametrize("key", ["params_ema", "params", "state_dict", None])
def test_places_of_the_weights(key, make_model, tmp_path):
    state = make_model().state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "net.pt")
    weights = read_weights(tmp_path / "net.pt")
    assert list(weights) == list(state)


def test_the_moving_average_wins(make_model, tmp_path):
    state = make_model().state_dict()
    doubled = {name: value * 2 for name, value in state.items()}
    torch.save({"params": state, "params_ema": doubled}, tmp_path / "net.pth")
    assert torch.equal(read_weights(tmp_path / "net.pth")["norm.bias"], doubled["norm.bias"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_put_in_front_by_wrappers(prefix, make_model, tmp_path):
    state = make_model().state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "net.pth")
    assert list(read_weights(tmp_path / "net.pth")) == list(state)


def test_safetensors(make_model, tmp_path, image):
    model = make_model().eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", num_heads=3, num_topk=model.num_topk)
    loaded.backend = "dense"
    assert torch.equal(loaded(image()), model(image()))


def test_published_schedule_is_found_by_the_shape(published_keys):
    """Shapes alone: the x4 model has two upsampling steps, the others one."""
    shapes = {key: shape for key, (_, shape) in published_keys("classical_x4").items()}
    assert infer_config(shapes).num_topk[:5] == (1024, 1024, 1024, 1024, 256)
    assert infer_config(shapes, num_topk=[512] * 30).num_topk == (512,) * 30
    assert infer_config(shapes, img_range=255.0).img_range == 255.0


def test_position_index_may_be_left_out(make_model, tmp_path, image):
    model = make_model().eval()
    state = model.state_dict()
    del state["relative_position_index_SA"]
    torch.save(state, tmp_path / "net.pth")
    loaded = load(tmp_path / "net.pth", backend="dense", num_heads=3, num_topk=model.num_topk)
    assert torch.equal(loaded(image()), model(image()))
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_load_is_public(make_model, tmp_path):
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    assert isinstance(
        pft_bench.load(tmp_path / "net.pth", num_heads=3, num_topk=model.num_topk), pft_bench.PFT
    )


def rename(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


def without(state, *parts):
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


BAD_WEIGHTS = {
    "another model": (
        lambda s: {"layers.0.residual_group.blocks.0.attn.qkv.weight": s["norm.bias"]},
        "'conv_first.weight' is missing; by its keys the file seems to be SwinIR",
    ),
    "ATD": (
        lambda s: rename(s, "attn_win", "attn_atd"),
        "attn_win.relative_position_bias_table' is missing; by its keys the file seems to be ATD",
    ),
    "nothing like it": (
        lambda s: {"weight": s["norm.bias"]},
        "'conv_first.weight' is missing; it has 1 keys: weight",
    ),
    "part of PFT": (
        lambda s: without(s, "conv_first"),
        "'conv_first.weight' is missing; the file seems to be an incomplete PFT checkpoint",
    ),
    "a block is missing": (
        lambda s: rename(s, "layers.1.residual", "layers.2.residual"),
        "layers of block 1 must be numbered from 0 without a gap",
    ),
    "no layers": (lambda s: without(s, "residual_group"), "'layers.0.residual_group.layers.0.*' is missing"),
    "a weight is missing": (
        lambda s: without(s, "1.residual_group.layers.2.norm1.bias"),
        "the file lacks 1 keys: layers.1.residual_group.layers.2.norm1.bias",
    ),
    "a weight is unknown": (lambda s: s | {"head.weight": s["norm.bias"]}, "has unknown 1 keys: head.weight"),
    "a wrong shape": (
        lambda s: s | {"norm.bias": torch.zeros(5)},
        r"weights must have the shapes of PFT\(.*norm.bias is \[5\], not \[12\]",
    ),
    "a wrong rank": (
        lambda s: s | {"conv_first.weight": torch.zeros(5)},
        r"conv_first.weight must have 4 dimensions, none of them empty, got shape \(5,\)",
    ),
    "not a table": (
        lambda s: (
            s | {"layers.0.residual_group.layers.0.attn_win.relative_position_bias_table": torch.zeros(7, 1)}
        ),
        r"relative_position_bias_table must have \(2w-1\)\^2 rows, got 7",
    ),
    "no upsampler": (lambda s: without(s, "upsample", "conv_last"), "'conv_last.weight' is missing"),
    "direct upsampler with odd channels": (
        lambda s: without(s, "conv_before", "upsample") | {"upsample.0.weight": torch.zeros(10, 12, 3, 3)},
        r"upsample must be one convolution to in_chans \* upscale\^2 channels",
    ),
    "embedding of no square": (
        lambda s: s | {"absolute_pos_embed": torch.zeros(1, 50, 12)},
        r"img_size must be given, e.g. load\(path, img_size=\(48, 64\)\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_bad_weights(change, message, make_model, tmp_path):
    model = make_model()
    path = tmp_path / "net.pth"
    torch.save(change(dict(model.state_dict())), path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, num_heads=3, num_topk=model.num_topk)
    assert str(path) in str(caught.value)


def test_what_weights_do_not_say_must_be_given(make_model, tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "net.pth")
    message = r"num_topk and num_heads must be given, e.g. load\(path, num_topk=..., num_heads=...\)"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net.pth")
    with pytest.raises(ValueError, match="num_topk must be given"):
        load(tmp_path / "net.pth", num_heads=3)
    with pytest.raises(ValueError, match="overrides must be keywords of PFT, got topk"):
        load(tmp_path / "net.pth", topk=(3,))
    with pytest.raises(ValueError, match="num_topk must have one entry"):
        load(tmp_path / "net.pth", num_heads=3, num_topk=(3,))


def test_unknown_backend_is_refused_before_anything_runs(make_model, tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        load(tmp_path / "net.pth", backend="fastest", num_heads=3, num_topk=(16,) * 6)


def test_not_strict(make_model, tmp_path):
    """Unknown weights are skipped, missing ones keep their initial values, wrong shapes are still refused."""
    state = dict(make_model().state_dict())
    given = {"num_heads": 3, "num_topk": (16,) * 6, "strict": False}
    torch.save(without(state, "conv_last.bias") | {"head": torch.zeros(1)}, tmp_path / "net.pth")
    assert torch.equal(load(tmp_path / "net.pth", **given).norm.bias, state["norm.bias"])
    torch.save(state | {"norm.bias": torch.zeros(5)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="weights must have the shapes"):
        load(tmp_path / "net.pth", **given)


class Payload:
    """Something that weights_only must refuse to unpickle."""


BAD_FILES = {
    "code": (lambda p: torch.save({"params": Payload()}, p), "not a checkpoint that holds weights only"),
    "damaged": (lambda p: p.write_bytes(b"PK not a zip"), "not a checkpoint that holds weights only"),
    "empty": (lambda p: p.write_bytes(b""), "not a checkpoint that holds weights only"),
    "a list": (lambda p: torch.save([torch.zeros(1)], p), "must hold a dictionary of weights, got list"),
    "no weights": (
        lambda p: torch.save({"epoch": 3, "iter": 5}, p),
        "weights must stand at the top or under a key such as params_ema, params, state_dict, got a file with 2 keys",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file(write, message, tmp_path):
    write(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net.pth")


def test_bad_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError, match=r"path must be a checkpoint .* that is a folder"):
        load(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(
        ValueError,
        match=r"must be a checkpoint \(.pth, .*got '.*net.onnx', which ends in .onnx and by its content",
    ):
        load(tmp_path / "net.onnx")
    (tmp_path / "net.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(tmp_path / "net.safetensors")
