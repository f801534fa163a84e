"""A model from the options that commands share: weights, schedule, backend, device and dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends import require
from ..common.schedule import parse_schedule
from ..harness.cases.settings import resolve_device
from ..model import PFT, generated_weights, load, preset, upscale, weights_file

PREDICTED = ("auto", "cpu", "dense", "cuda", "triton")
"""Backends whose memory `plan_upscale` knows."""


def parse_dtype(name: str) -> torch.dtype:
    """A floating-point dtype by its name; ValueError for anything else."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {name!r}")
    return dtype


def load_model(
    weights: Path | None,
    *,
    backend: str = "auto",
    sched: str | None = None,
    heads: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    preset_name: str = "light_x4",
) -> PFT:
    """The model of a checkpoint, ready to run; without one, the preset with generated weights.

    `sched` and `heads` also say what the weights of a model do not say that has the shape of no preset.

    Raises ValueError or `pft_bench.BackendUnavailable` where an option cannot be right, before anything is computed.
    """
    if weights is not None:
        weights_file(weights, "--weights")
    device = resolve_device(device)
    torch_dtype = parse_dtype(dtype)
    require(backend, torch.device(device), torch_dtype)
    if weights is None:
        if heads is not None:
            raise ValueError(f"--num-heads is of the model in --weights, got {heads} without weights")
        model = PFT.from_config(preset(preset_name), backend)
        model.load_state_dict(generated_weights(model))
        if sched is not None:
            area = model.config.window_size**2
            model.num_topk = parse_schedule(sched, model.config.depths, area).num_topk
    else:
        model = load(weights, backend, **weights_keywords(sched, heads))
    return model.to(device, torch_dtype).eval()


def weights_keywords(sched: str | None, heads: int | None) -> dict[str, Any]:
    """What `pft_bench.load` is given of the options --sched and --num-heads."""
    given = {"num_topk": sched, "num_heads": heads}
    return {name: value for name, value in given.items() if value is not None}


def restorer(
    model: PFT,
    *,
    tile: tuple[int, int | None] | None = None,
    memory_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[Tensor], Tensor]:
    """The model as a function of an image of any size, device and dtype, in tiles where memory asks for them."""
    parameter = next(model.parameters())
    side, overlap = tile or (None, None)
    # Nobody tiles with the slow backends that only check, so their memory is not predicted.
    whole = tile is None and memory_bytes is None and model.backend not in PREDICTED

    def restore(x: Tensor) -> Tensor:
        x = x.to(parameter.device, parameter.dtype)
        if whole:
            y: Tensor = model(x)
            return y
        return upscale(model, x, tile=side, overlap=overlap, memory_bytes=memory_bytes, progress=progress)

    return restore
