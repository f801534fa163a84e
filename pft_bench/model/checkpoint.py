"""Published weights from a file to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import OWN_PRESETS
from .infer import infer_config, listed
from .notes import noted_settings
from .pft import PFT

# Where training code puts weights; the moving average comes first, as in the authors' tests.
WEIGHT_KEYS = ("params_ema", "params", "state_dict")
WRAPPERS = ("module.", "_orig_mod.")
SUFFIXES = (".pth", ".pt", ".safetensors")
# Weights that come with the package; each has a card beside it.
SHIPPED = Path(__file__).parent.parent / "data"
# Never read when computing, so a file may lack it.
OPTIONAL = "relative_position_index_SA"


def load(
    path: str | os.PathLike[str], backend: str = "auto", *, strict: bool = True, **overrides: Any
) -> PFT:
    """Load a PFT checkpoint, published or trained with this package, in evaluation mode on the CPU.

    Args:
        path: .pth or .pt (weights under "params_ema", "params" or "state_dict", or a bare state dict; read with
            ``weights_only=True``), or .safetensors; or "small_x2", the small model that this package ships.
        backend: kernels of the attention, see `PFT`.
        strict: refuse missing and unknown weights. Without it, unknown ones are skipped and missing ones keep
            their initial values.
        overrides: constructor keywords that win over what the file says. Weights do not tell num_topk, num_heads
            where all heads share one bias, nor img_range: these come from the header of a file that this package
            trained, else from the published model of the same shape.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a PFT checkpoint, or one that does not determine the configuration; the message says what
            is missing and what the file seems to be.
    """
    weights = read_weights(path)
    overrides = noted_settings(weights_file(path)) | overrides
    try:
        config = infer_config({name: tuple(value.shape) for name, value in weights.items()}, **overrides)
        model = PFT.from_config(config, backend)
        _fill(model, weights, strict)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return model.eval()


def weights_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """`path`, or the file of the weights that this package ships where `path` is their name, "small_x2".

    Raises FileNotFoundError or ValueError, which name `argument`, where that is no checkpoint by its name.
    """
    file, given = Path(path), os.fspath(path)
    if not file.exists() and given in OWN_PRESETS:
        return SHIPPED / f"{given}.safetensors"
    expected = (
        f"{argument} must be a checkpoint ({', '.join(SUFFIXES)}) or {' or '.join(map(repr, OWN_PRESETS))}"
    )
    if not file.is_file():
        found = "that is a folder" if file.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{expected}, got {given!r}: {found}")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{expected}, got {given!r}, which ends in {file.suffix or 'nothing'}")
    return file


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of a checkpoint file, without the names that wrappers put in front of their keys."""
    file = weights_file(path)
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    found = content
    for key in WEIGHT_KEYS:
        if isinstance(content.get(key), Mapping):
            found = content[key]
            break
    weights = {_unwrapped(str(name)): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(
            f"{file}: weights must stand under one of {', '.join(WEIGHT_KEYS)} or at the top, "
            f"got a file with {listed(content)}"
        )
    return weights


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content: Mapping[str, Any] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error
    return content


def _read_torch(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"{file}: not a checkpoint that holds weights only ({first})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: must hold a dictionary of weights, got {type(content).__name__}")
    return content


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


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


def _summary(model: PFT) -> str:
    config = model.config
    return (
        f"PFT(embed_dim={config.embed_dim}, depths={config.depths}, window_size={config.window_size}, "
        f"upsampler={config.upsampler!r}, upscale={config.upscale})"
    )
