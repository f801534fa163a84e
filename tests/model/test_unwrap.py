"""Checkpoints as people have them: wrappers, trainers, other tools' counters, and values that are no weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pft_bench.model import PFT, CheckpointNote, load, read_weights

State = dict[str, Tensor]
GIVEN: dict[str, Any] = {"num_heads": 3, "num_topk": (16, 16, 9, 9, 5, 5), "backend": "dense"}
OTHERS = {"criterion.vgg.0.weight": torch.ones(2), "net_d.conv0.weight": torch.ones(2)}


@pytest.fixture(scope="module")
def state(make_model: Callable[..., PFT]) -> State:
    return dict(make_model().state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def inside(part: str, state: State) -> State:
    """As a wrapper around each layer names its weights."""
    return {name.replace("group.layers.0.", f"group.layers.0.{part}."): v for name, v in state.items()}


def doubled(state: State) -> State:
    return {name: value * 2 for name, value in state.items()}


# What a file holds, from the weights w; the file must give exactly w, without a word.
QUIET = {
    "DataParallel": lambda w: under("module.", w),
    "torch.compile, then DistributedDataParallel": lambda w: under("module._orig_mod.", w),
    "torch.compile of each layer": lambda w: inside("_orig_mod", w),
    "FSDP around each layer": lambda w: {"params": inside("_fsdp_wrapped_module", w)},
    "activation checkpointing": lambda w: inside("_checkpoint_wrapped_module", w),
    "Lightning": lambda w: {"state_dict": under("model.", w), "epoch": 3, "hyper_parameters": {"lr": 2e-4}},
    "Lightning with torch.compile": lambda w: {"state_dict": under("net._orig_mod.", w)},
    "BasicSR's net_g": lambda w: under("net_g.", w),
    "a prefix nobody has heard of": lambda w: {"params": under("student.backbone.", w)},
    "a prefix that ends in no dot": lambda w: {"params": under("net_", w)},
    "a prefix with a slash": lambda w: under("generator/", w),
    "model_state_dict with an optimiser": lambda w: {
        "epoch": 3,
        "model_state_dict": w,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    },
    "model": lambda w: {"model": w},
    "network": lambda w: {"network": under("module.", w)},
    "a key nobody has heard of": lambda w: {"generator": w, "discriminator": {"conv0.weight": torch.ones(2)}},
    "nested keys": lambda w: {"checkpoint": {"model": {"state_dict": w}}},
    "timm's average": lambda w: {"state_dict": doubled(w), "state_dict_ema": w},
    "an average inside a holder": lambda w: {"model": doubled(w), "ema": {"module": w, "decay": 0.999}},
    "an average in camel case": lambda w: {"net": doubled(w), "netEMA": w},
    "an average called emaModel": lambda w: {"emaModel": w, "model": doubled(w)},
    "an average called EMAModel": lambda w: {"EMAModel": under("module.", w), "params": doubled(w)},
    "a shadow": lambda w: {"model": doubled(w), "shadow": w},
    "params without an average": lambda w: {"params": w, "params_ema": None},
    "views of one storage": lambda w: {n: torch.stack([v, v], -1)[..., 0] for n, v in w.items()},
    "parameters": lambda w: {n: nn.Parameter(v, v.is_floating_point()) for n, v in w.items()},
    "double precision": lambda w: {n: v.double() if v.is_floating_point() else v for n, v in w.items()},
}
# What a file holds, and the note about what was left out.
NOTED = {
    "thop's counters": (
        lambda w: (
            w | {"total_ops": torch.zeros(1).double(), "layers.0.total_params": torch.zeros(1).double()}
        ),
        "counters of other tools are left out: 2 keys: total_ops, layers.0.total_params",
    ),
    "AveragedModel": (
        lambda w: under("module.", w) | {"n_averaged": torch.tensor(7)},
        "counters of other tools are left out: 1 keys: n_averaged",
    ),
    "counters of ema_pytorch and loops": (
        lambda w: (
            under("ema_model.", w)
            | {"initted": torch.tensor([True]), "step": torch.tensor(3), "epoch": torch.tensor(1)}
        ),
        "counters of other tools are left out: 3 keys: initted, step, epoch",
    ),
    "parts beside the model": (
        lambda w: {"state_dict": under("net_g.", w) | OTHERS},
        "those under 'net_g.'; the others are left out: 2 keys: criterion.vgg.0.weight, net_d.conv0.weight",
    ),
    "an average beside the model": (
        lambda w: {"state_dict": under("model.", doubled(w)) | under("model_ema.", w)},
        "the weights are those under 'model_ema.'; the others are left out",
    ),
    "an average in camel case beside the model": (
        lambda w: {"state_dict": under("netG.", doubled(w)) | under("netGEma.", w)},
        "the weights are those under 'netGEma.'; the others are left out",
    ),
    "an average as a list": (
        lambda w: {"model": w, "ema": {"shadow_params": [torch.ones(2)]}},
        "the weights are those under 'model': 'ema' holds none by name, but 1 keys",
    ),
}


@pytest.mark.parametrize("kind", [*QUIET, *NOTED])
def test_the_weights_are_found(kind: str, state: State, tmp_path: Path) -> None:
    make, said = (QUIET[kind], None) if kind in QUIET else NOTED[kind]
    torch.save(make(state), tmp_path / "net.pth")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model = load(tmp_path / "net.pth", **GIVEN)
    found = model.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    if said is None:
        assert not notes, notes[0].message
    else:
        (note,) = notes
        assert note.category is CheckpointNote
        assert said in str(note.message)
        assert str(tmp_path / "net.pth") in str(note.message)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda w: w | {name: change(w[name])}


def quantised(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


WRONG_VALUES = {
    "meta": (lambda v: v.to("meta"), "on the meta device"),
    "sparse": (lambda v: v.to_sparse(), "sparse_coo"),
    "csr": (lambda v: v.view(1, -1).to_sparse_csr(), "sparse_csr"),
    "complex": (lambda v: v.to(torch.complex64), "complex64"),
    "integer": (lambda v: v.to(torch.int8), "int8"),
    "bool": (lambda v: v > 0, "bool"),
    "float8": (lambda v: v.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "quantised": (quantised, "quantised"),
}
REFUSED = {
    **{
        f"{kind} values": (
            changed("norm.bias", change),
            rf"weights must be dense tensors of float16, bfloat16, float32, float64, got norm.bias \({said}",
        )
        for kind, (change, said) in WRONG_VALUES.items()
    },
    "NaN": (changed("norm.bias", lambda v: v * torch.nan), "must be finite, but NaN .* in 1 keys: norm.bias"),
    "too large for float32": (changed("norm.bias", lambda v: v.double() + 1e300), "weights must be finite"),
    "one weight under two names": (
        lambda w: w | {"module.norm.bias": w["norm.bias"] * 2},
        "one name for each weight, got two for 'norm.bias'",
    ),
    "one weight with and without the prefix": (
        lambda w: under("model.", w) | {"norm.bias": w["norm.bias"]},
        "one name for each weight, got 'norm.bias' and 'model.norm.bias'",
    ),
    "all weights under two names": (
        lambda w: w | under("model.", w),
        "one name for each weight, got 'conv_first.weight' and 'model.conv_first.weight'",
    ),
    "two models": (
        lambda w: {"teacher": w, "student": w},
        "must hold one model, got several, under 'teacher' and 'student'",
    ),
    "an empty average": (
        lambda w: {"params_ema": {}, "params": w},
        "params_ema, the moving average, must hold the weights of a PFT, got nothing; to use those under params",
    ),
    "an average of something else": (
        lambda w: {"params_ema": {"x": torch.ones(1)}, "params": w},
        "params_ema, the moving average, must hold the weights of a PFT, got 1 keys",
    ),
    "an incomplete model under a prefix": (
        lambda w: {"state_dict": under("model.", {n: v for n, v in w.items() if n != "norm.bias"})},
        "the file lacks 1 keys: norm.bias",
    ),
    "a layer of an absurd number": (
        lambda w: w | {"layers.9999999999.residual_group.layers.0.norm1.bias": torch.ones(2)},
        r"layers of block 2 must be numbered from 0 without a gap, got \[\]",
    ),
    "a part that PFT does not have": (
        lambda w: w | {"res_scale": torch.ones(1)},
        "the file has unknown 1 keys: res_scale",
    ),
    "another model under a prefix": (
        lambda w: {
            "state_dict": under("model.", {n.replace("attn_win", "attn_atd"): v for n, v in w.items()})
        },
        "by its keys the file seems to be ATD",
    ),
    "an optimiser alone": (
        lambda w: {"state": {0: {"exp_avg": w["norm.bias"]}}, "param_groups": [{"lr": 1e-4}]},
        "got a file with 2 keys: state, param_groups, .*seems to be the state of an optimiser",
    ),
    "the state of a training run": (
        lambda w: {"format": 1, "run": {"model": "x"}, "state": {"step": 1, "model": w, "ema": w}},
        "state of a training run.*weights to use are in weights.safetensors beside it",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_model_can_be_made_of(kind: str, state: State, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    torch.save(make(state), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "net.pth", **GIVEN)
    assert str(tmp_path / "net.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_read_may_be_anything(state: State, tmp_path: Path) -> None:
    """The index that no computation reads, and without strict values that are not finite."""
    index = "relative_position_index_SA"
    torch.save(state | {index: state[index].to("meta")}, tmp_path / "net.pth")
    assert load(tmp_path / "net.pth", **GIVEN).norm.bias.isfinite().all()
    torch.save(state | {"norm.bias": state["norm.bias"] * torch.nan}, tmp_path / "net.pth")
    assert load(tmp_path / "net.pth", strict=False, **GIVEN).norm.bias.isnan().all()


def test_prefixes_in_safetensors(state: State, tmp_path: Path) -> None:
    save_file(under("model.", state) | OTHERS, tmp_path / "net.safetensors")
    with pytest.warns(CheckpointNote, match="those under 'model.'"):
        assert read_weights(tmp_path / "net.safetensors").keys() == state.keys()
