"""Files of a training run: a checkpoint to go on from, and weights to use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def write_checkpoint(path: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `state` and the description `run` of what is trained, so that a kill leaves the old or the new file."""
    _replace(path, lambda part: torch.save({"format": FORMAT, "run": run, "state": state}, part))


def read_checkpoint(path: Path, run: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in `path`, where it is of the same `run`; CheckpointError otherwise, with what differs."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is nothing to resume: {path} does not exist") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a checkpoint of pft-bench train: {first}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of pft-bench train")
    before = content["run"]
    differing = list(_differences(before, run))
    if differing:
        raise CheckpointError(f"{path} is of another run: {'; '.join(differing)}")
    state: dict[str, Any] = content["state"]
    return state


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each field that differs, those of the recipe by their own names."""
    for name in {**stored, **now}:
        old, new = stored.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name} stored {old!r}, now {new!r}"


def export_weights(path: Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Write the weights of `model` as .safetensors, with `notes` in its header.

    The published index of the bias table is left out: it is half a megabyte that no computation reads.
    """
    from safetensors.torch import save

    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name != "relative_position_index_SA"
    }
    _replace(path, lambda part: part.write_bytes(_notes_in_order(save(weights, metadata=notes))))


def _notes_in_order(content: bytes) -> bytes:
    """The same .safetensors file with its notes sorted: the library writes them in the order of a random hash.

    The file begins with the length of its JSON header, 8 bytes little-endian; the header is padded with spaces.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
