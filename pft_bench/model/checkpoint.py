"""Published weights from a file to a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import PFTConfig
from .files import read_file, weights_file
from .foreign import part_of_several
from .infer import infer_config, listed
from .notes import noted_settings
from .pft import PFT
from .unwrap import DTYPES, OPTIONAL, CheckpointNote, find_weights


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    *,
    strict: bool = True,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PFT:
    """Load a PFT checkpoint, published or trained with this package, in evaluation mode on the CPU.

    Args:
        path: a file of torch.save (read with ``weights_only=True``) or safetensors, told by its content; or
            "small_x2", the small model that this package ships. Weights may stand at the top or under any key; a
            moving average comes first ("params_ema"), then "params", "state_dict" and the like. What wrappers and
            trainers put in front of the names of weights ("module.", "_orig_mod.", "model.", ...) is taken away.
        backend: kernels of the attention, see `PFT`.
        strict: refuse missing and unknown weights, and values that are not finite. Without it, unknown ones are
            skipped and missing ones keep their initial values.
        dtype: what the model's weights are, and with them its arithmetic: torch.float32, bfloat16, float16 or float64.
            A model of 16 bits takes images in float32 too, and then gives one back that is not rounded to 16 bits.
        overrides: constructor keywords that win over what the file says. Weights do not tell num_topk, num_heads
            where all heads share one bias, nor img_range: these come from the header of a file that this package
            trained, else from the published model of the same shape. num_topk may be the text of a focus schedule,
            "512,128,32".

    Warns:
        CheckpointNote: something in the file was left out: counters of other tools, parts beside the model.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `dtype` is none of these.
        ValueError: not a PFT checkpoint, or one that does not determine the configuration; the message says what
            is missing and what the file seems to be.
    """
    if dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise TypeError(f"dtype must be one of {known}, got {dtype!r}")
    weights = read_weights(path)
    model = PFT.from_config(_configure(path, weights, overrides), backend)
    try:
        _fill(model, weights, strict)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}{part_of_several(Path(path))}") from error
    return model.to(dtype).eval()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a checkpoint file by their published names, without what wrappers put in front of these.

    Warns with `CheckpointNote` of what is left out. Raises FileNotFoundError or ValueError, see `load`.
    """
    file = weights_file(path)
    content = read_file(file)
    try:
        weights, notes = find_weights(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for note in notes:
        warnings.warn(f"{file}: {note}", CheckpointNote, stacklevel=2)
    return weights


def weights_config(path: str | os.PathLike[str], **overrides: Any) -> PFTConfig:
    """The configuration of the model in a checkpoint, as `load` would make it."""
    return _configure(path, read_weights(path), overrides)


def _configure(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], overrides: dict[str, Any]
) -> PFTConfig:
    told = noted_settings(weights_file(path)) | overrides
    try:
        return infer_config({name: tuple(value.shape) for name, value in weights.items()}, **told)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}{part_of_several(Path(path))}") from error


def _fill(model: PFT, weights: Mapping[str, Tensor], strict: bool) -> None:
    own = model.state_dict()
    missing = [name for name in own if name not in weights and name != OPTIONAL]
    extra = [name for name in weights if name not in own]
    wrong = [
        f"{name} is {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"weights must have the shapes of {_summary(model)}, got {'; '.join(wrong[:3])}")
    if strict and (missing or extra):
        parts = [
            f"{word} {listed(names)}" for word, names in (("lacks", missing), ("has unknown", extra)) if names
        ]
        raise ValueError(f"weights must be those of {_summary(model)}, but the file {' and '.join(parts)}")
    model.load_state_dict({n: v for n, v in weights.items() if n in own and n != OPTIONAL}, strict=False)
    bad = [name for name, value in model.named_parameters() if not bool(value.detach().isfinite().all())]
    if strict and bad:
        raise ValueError(f"weights must be finite, but NaN or infinity is in {listed(bad, 3)}")


def _summary(model: PFT) -> str:
    config = model.config
    return (
        f"PFT(embed_dim={config.embed_dim}, depths={config.depths}, window_size={config.window_size}, "
        f"upsampler={config.upsampler!r}, upscale={config.upscale})"
    )
