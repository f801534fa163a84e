"""Published weights for the compared systems: from a file into the model, and whether what it makes is an image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ...model.files import read_file, weights_file
from ...model.unwrap import find_weights
from .facts import System

PLAUSIBLE_DB = 20.0
"""PSNR against a bicubic enlargement that trained weights exceed by far, and random ones do not reach."""


def weights_by_system(given: Iterable[str], systems: Iterable[System]) -> dict[str, Path]:
    """System -> file of weights, from texts NAME=FILE.

    Raises ValueError or FileNotFoundError for a text of another form, a system that does not run, no file of weights.
    """
    names = {system.name.lower(): system.name for system in systems if system.runs}
    found: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not sign or name.lower() not in names or not path:
            known = ", ".join(names.values())
            raise ValueError(f"--weights must be NAME=FILE with a NAME of {known}, got {text!r}")
        if names[name.lower()] in found:
            raise ValueError(f"--weights must name each system once, got {names[name.lower()]} twice")
        found[names[name.lower()]] = weights_file(path, "--weights")
    return found


def load_published(model: nn.Module, file: Path) -> None:
    """Fill `model` from a file of torch.save or safetensors, whatever key its weights stand under.

    Buffers, which follow from the shapes, may be absent or additional. Raises ValueError where a parameter is missing,
    another is there, or one has another shape.
    """
    weights, _ = find_weights(_without_indices(read_file(file)))
    wrong = _misfit(dict(model.named_parameters()), dict(model.named_buffers()), weights)
    if wrong:
        raise ValueError(f"{file}: {wrong}")
    own = model.state_dict()
    model.load_state_dict({**own, **{name: value for name, value in weights.items() if name in own}})


def _without_indices(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """The content of a file without its whole numbers: tables of positions, which a model makes itself."""
    kept = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            kept[key] = _without_indices(value)
        elif not isinstance(value, Tensor) or value.is_floating_point():
            kept[key] = value
    return kept


def _misfit(
    parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    """Why the weights are not the model's, in words; "" where they are."""
    missing = [name for name in parameters if name not in weights]
    kinds = {name.rpartition(".")[2] for name in buffers} | {"attn_mask", "relative_position_index"}
    unknown = [
        n for n in weights if n not in parameters and n not in buffers and n.rpartition(".")[2] not in kinds
    ]
    if missing or unknown:
        parts = [f"{len(missing)} missing ({missing[0]})" if missing else ""]
        parts += [f"{len(unknown)} unknown ({unknown[0]})" if unknown else ""]
        return (
            f"weights must be those of {len(parameters)} parameters, got {' and '.join(filter(None, parts))}"
        )
    for name, value in [*parameters.items(), *((n, b) for n, b in buffers.items() if n in weights)]:
        if weights[name].shape != value.shape:
            return f"{name} must be {list(value.shape)}, got {list(weights[name].shape)}"
    return ""


def likeness_db(made: Tensor, image: Tensor) -> float:
    """PSNR of what a system made of `image` [B, 3, h, w] against the image enlarged to its size by bicubic rules."""
    plain = functional.interpolate(image.float(), made.shape[2:], mode="bicubic", align_corners=False)
    error = float((made.float().clamp(0, 1) - plain.clamp(0, 1)).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)
