"""Files of a training run: a checkpoint to go on from, and weights to use."""

from __future__ import annotations

import io
import json
import reprlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...common.drafts import named, write_whole
from ...model import PFT, settings_note

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def write_checkpoint(path: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `state` and the description `run` of what is trained, so that a kill leaves the old or the new file."""
    made = io.BytesIO()  # torch.save tells nothing of a full disk but the place in its own source
    torch.save({"format": FORMAT, "run": run, "state": state}, made)
    _write(path, made.getbuffer())


def read_checkpoint(path: Path, run: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in `path`, where it is undamaged and of the same `run`; CheckpointError otherwise, which says why."""
    if not path.exists():
        raise CheckpointError(f"there is nothing to resume: {path} does not exist")
    with named(path):
        content = _undamaged(path, device)
    if not isinstance(content, dict) or _other(content.get("format"), FORMAT):
        raise CheckpointError(f"{path} is not a checkpoint of this version of pft-bench train")
    for name in ("run", "state"):
        if not isinstance(content.get(name), dict):
            raise CheckpointError(
                f"{path} is not a checkpoint of pft-bench train: {name!r} must be a dictionary, "
                f"got {type(content.get(name)).__name__}"
            )
    differing = list(_differences(content["run"], run))
    if differing:
        raise CheckpointError(f"{path} is of another run: {'; '.join(differing)}")
    state: dict[str, Any] = content["state"]
    return state


def _undamaged(path: Path, device: torch.device | str) -> Any:
    """What torch.save wrote. Torch itself does not look at the checksums of its archive: one flipped bit of a weight
    would go unseen.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except (
            Exception
        ):  # a flipped bit in a table leads anywhere, to places before the file's beginning too
            damaged = "its table of contents"
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of pft-bench train: {damaged} is not whole"
        )
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # another program's pickle can raise nearly anything
        raise CheckpointError(
            f"{path} is not a checkpoint of pft-bench train: reading it ended with {type(error).__name__}"
        ) from error


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each field that differs, those of the recipe by their own names."""
    for name in {**stored, **now}:
        old, new = stored.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        elif _other(old, new):
            yield f"{name} stored {reprlib.repr(old)}, now {reprlib.repr(new)}"


def _other(stored: object, now: object) -> bool:
    """Whether they differ. A tensor, which another program's file may hold anywhere, has no answer to != alone."""
    return type(stored) is not type(now) or stored != now


def export_weights(path: Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Write the weights of `model` as .safetensors, with `notes` in its header, and what a PFT's weights do not say
    about it (`pft_bench.model.settings_note`): `pft_bench.load` makes the same model from the file alone.

    The published index of the bias table is left out: it is half a megabyte that no computation reads.
    """
    from safetensors.torch import save

    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name != "relative_position_index_SA"
    }
    if isinstance(model, PFT):
        notes = notes | settings_note(model.config)
    _write(path, _notes_in_order(save(weights, metadata=notes)))


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


def _write(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
