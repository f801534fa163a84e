"""The configuration of a model, read off the names and shapes of its weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.schedule import parse_schedule
from .config import OWN_PRESETS, PRESETS, SHARED_BIAS_MAX_DIM, PFTConfig
from .upsamplers import FEATURES

# Parts of key names by which models of the same family can be told from PFT.
_RELATIVES = {
    "ATD": ("attn_atd", ".td"),
    "HAT": ("relative_position_index_OCA", "overlap_attn"),
    "SwinIR": ("residual_group.blocks.0.attn.qkv",),
    "EDSR or RCAN": ("body.0.body.0.weight", "body.0.rcab"),
}

# How commands are given what weights do not say.
_OPTIONS = {"num_topk": "--sched 512,128,32", "num_heads": "--num-heads 4"}


def infer_config(shapes: Mapping[str, tuple[int, ...]], **overrides: Any) -> PFTConfig:
    """Read the configuration off the names and shapes of a state dict; `overrides` are keywords that win.

    Among them, num_topk may be the text of a focus schedule (`pft_bench.common.schedule`).

    Raises ValueError where the weights are not PFT's or leave a keyword open.
    """
    known = {field.name for field in dataclasses.fields(PFTConfig)} - {"ignored"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"overrides must be keywords of PFT, got {', '.join(unknown)}")
    dim, channels = _shape(shapes, "conv_first.weight", 4)[:2]
    depths = _depths(shapes)
    layer = "layers.0.residual_group.layers.0"
    table = _shape(shapes, f"{layer}.attn_win.relative_position_bias_table", 2)
    side = math.isqrt(table[0])
    if side * side != table[0] or side % 2 == 0:
        raise ValueError(f"relative_position_bias_table must have (2w-1)^2 rows, got {table[0]}")
    hidden = _shape(shapes, f"{layer}.convffn.fc1.weight", 2)[0]
    found: dict[str, Any] = {
        "in_chans": channels,
        "embed_dim": dim,
        "depths": depths,
        "window_size": (side + 1) // 2,
        "convffn_kernel_size": _shape(shapes, f"{layer}.convffn.dwconv.depthwise_conv.0.weight", 4)[-1],
        "mlp_ratio": _ratio(hidden, dim),
        "qkv_bias": f"{layer}.wqkv.bias" in shapes,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "resi_connection": "3conv" if "conv_after_body.0.weight" in shapes else "1conv",
        **_infer_upsampler(shapes, channels),
        **_infer_position_embedding(shapes, overrides),
    }
    if dim > SHARED_BIAS_MAX_DIM:
        found["num_heads"] = table[1]
    found |= overrides
    if isinstance(found.get("num_topk"), str):
        found["num_topk"] = parse_schedule(found["num_topk"], depths, found["window_size"] ** 2).num_topk
    return PFTConfig(**_complete_from_presets(found))


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dims: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"not the weights of PFT: {name!r} is missing; {_guess(shapes)}")
    if len(shapes[name]) != dims or 0 in shapes[name]:
        raise ValueError(f"{name} must have {dims} dimensions, none of them empty, got shape {shapes[name]}")
    return shapes[name]


def _guess(shapes: Mapping[str, tuple[int, ...]]) -> str:
    names = " ".join(shapes)
    for model, marks in _RELATIVES.items():
        if any(mark in names for mark in marks):
            return f"by its keys the file seems to be {model}"
    if "attn_win" in names or "v_LePE" in names:
        return "the file seems to be an incomplete PFT checkpoint"
    return f"it has {listed(shapes)}"


def listed(names: Iterable[Any], most: int = 6) -> str:
    """Write a collection of key names for an error message, the first few of them."""
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{len(shown)} keys: {', '.join(map(str, shown[:most]))}{more}" if shown else "no keys"


def _depths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    layers: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"layers\.(\d+)\.residual_group\.layers\.(\d+)\.", name):
            layers.setdefault(int(match[1]), set()).add(int(match[2]))
    blocks = [layers.get(block, set()) for block in range(max(layers, default=-1) + 1)]
    for block, present in enumerate(blocks):
        if present != set(range(len(present))) or not present:
            raise ValueError(
                f"layers of block {block} must be numbered from 0 without a gap, got {sorted(present)}"
            )
    if not blocks:
        raise ValueError(
            f"not the weights of PFT: 'layers.0.residual_group.layers.0.*' is missing; {_guess(shapes)}"
        )
    return tuple(len(present) for present in blocks)


def _ratio(hidden: int, dim: int) -> float:
    """Find a ratio r with int(dim * r) == hidden."""
    ratio = hidden / dim
    if int(dim * ratio) != hidden:  # rounded down below it
        ratio = math.nextafter(ratio, math.inf)
    return int(ratio) if ratio == int(ratio) else ratio


def _infer_upsampler(shapes: Mapping[str, tuple[int, ...]], channels: int) -> dict[str, Any]:
    if "conv_up1.weight" in shapes:
        return {"upsampler": "nearest+conv", "upscale": 4}
    steps = sorted(name for name in shapes if re.fullmatch(r"upsample\.\d+\.weight", name))
    if "conv_before_upsample.0.weight" in shapes:
        scale = 1
        for name in steps:
            scale *= math.isqrt(_shape(shapes, name, 4)[0] // FEATURES)
        return {"upsampler": "pixelshuffle", "upscale": scale}
    if steps:
        made = _shape(shapes, steps[0], 4)[0]
        scale = math.isqrt(made // channels)
        if len(steps) > 1 or channels * scale * scale != made:
            raise ValueError(
                f"upsample must be one convolution to in_chans * upscale^2 channels with in_chans={channels}, "
                f"got {len(steps)} with {made} channels in the first"
            )
        return {"upsampler": "pixelshuffledirect", "upscale": scale}
    _shape(shapes, "conv_last.weight", 4)
    return {"upsampler": "", "upscale": 1}


def _infer_position_embedding(
    shapes: Mapping[str, tuple[int, ...]], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    if "absolute_pos_embed" not in shapes:
        return {}
    tokens = _shape(shapes, "absolute_pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side * side != tokens and "img_size" not in overrides:
        raise ValueError(
            f"img_size must be given, e.g. load(path, img_size=(48, 64)): absolute_pos_embed is for {tokens} tokens, "
            f"which are not a square"
        )
    return {"ape": True, "img_size": side}


def _complete_from_presets(found: dict[str, Any]) -> dict[str, Any]:
    """Add what weights do not say, from the known model of the same shape."""
    same = ("embed_dim", "depths", "window_size", "mlp_ratio", "convffn_kernel_size")
    for published in (*PRESETS.values(), *OWN_PRESETS.values()):
        if all(getattr(published, name) == found[name] for name in same):
            return {"num_topk": published.num_topk, "num_heads": published.num_heads} | found
    missing = [name for name in ("num_topk", "num_heads") if name not in found]
    if missing:
        shape = ", ".join(f"{name}={found[name]}" for name in ("embed_dim", "depths", "window_size"))
        raise ValueError(
            f"{' and '.join(missing)} must be given, e.g. load(path, {', '.join(f'{m}=...' for m in missing)}) or "
            f"{' '.join(_OPTIONS[name] for name in missing)} of the commands: weights do not say, and no published "
            f"model has {shape}"
        )
    return found
