"""Files of weights: which names mean one, what kind of file it is by its content, and why one cannot be read."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import OWN_PRESETS
from .foreign import folder_of_parts, foreign, plain_pickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".safetensors")
"""How names of checkpoints end, in any case. A file of another name is one if its content says so."""
_USUAL = ".pth, .pt, .safetensors"
# Weights that come with the package; each has a card beside it.
SHIPPED = Path(__file__).parent.parent / "data"
_SAVE_AGAIN = "In a program of yours that trusts the file, save again with torch.save({what}, 'weights.pth')"
_WHOLE = "torch.load({path!r}, weights_only=False)"


def weights_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """`path`, or the file of the weights that this package ships where `path` is their name, "small_x2".

    Raises FileNotFoundError or ValueError, which name `argument`, where that is no checkpoint by its name.
    """
    file, given = Path(path), os.fspath(path)
    if not file.is_file() and given in OWN_PRESETS:
        return SHIPPED / f"{given}.safetensors"
    expected = f"{argument} must be a checkpoint ({_USUAL}) or {' or '.join(map(repr, OWN_PRESETS))}"
    if not file.is_file():
        raise FileNotFoundError(f"{expected}, got {given!r}: {_instead(file)}")
    if not file.name.lower().endswith(SUFFIXES) and not _is_checkpoint(file):
        raise ValueError(
            f"{expected}, got {given!r}, which ends in {file.suffix or 'nothing'} and by its content is neither of "
            "torch.save nor safetensors"
        )
    return file


def _instead(file: Path) -> str:
    if not file.is_dir():
        return "that is not a regular file" if file.exists() else "there is no such file"
    inside = sorted(name for name in os.listdir(file) if name.lower().endswith(SUFFIXES))
    if told := folder_of_parts(file):
        return f"that is a folder{told}"
    return "that is a folder" + (f", which holds {', '.join(inside[:3])}" if inside else "")


def read_file(file: Path) -> Mapping[str, Any]:
    """Everything in a file of torch.save or safetensors, on the CPU; nothing in it is executed.

    Raises ValueError, which names the file, where it is something else or damaged.
    """
    if is_safetensors(file):
        return _read_safetensors(file)
    head = _head(file)
    said = foreign(head) if head else "the file is empty, 0 bytes"
    if said is not None:
        raise ValueError(f"{file}: not a checkpoint that holds weights only ({said})")
    by_name = file.name.lower().endswith(".safetensors") and not head.startswith((b"PK", b"\x80"))
    return _read_safetensors(file) if by_name else _read_torch(file)


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(512)


def _is_checkpoint(file: Path) -> bool:
    """By its content: safetensors, or what torch.save writes, now and before PyTorch 1.6."""
    if is_safetensors(file) or _head(file).startswith(b"\x80\x02\x8a\nl\xfc\x9c"):
        return True
    return zipfile.is_zipfile(file) and any(name.endswith("data.pkl") for name in _members(file))


def _members(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def is_safetensors(file: Path) -> bool:
    """By its content: it begins with the length of its JSON header, 8 bytes little-endian."""
    with file.open("rb") as opened:
        head = opened.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        content: Mapping[str, Any] = load_file(file)
    except Exception as error:  # SafetensorError; KeyError for a dtype that this torch does not have
        raise ValueError(
            f"{file}: not a safetensors file, or one that is damaged or cut short ({_line(error)})"
        ) from error
    return content


def _read_torch(file: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            with file.open("rb") as opened:  # by a name, torch goes by its suffix
                content = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{file}: not a checkpoint that holds weights only ({_reason(file, error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: must hold a dictionary of weights, got {type(content).__name__}")
    return content


def _numpy_scalars() -> list[Any]:
    """What a number of numpy's is read with, under the names of numpy 1 and 2.

    Beside weights, people keep the best PSNR as one. Arrays are not among them: together with scalars of a structured
    dtype, a made-up file could have memory read as something it is not.
    """
    make = np.float64(0).__reduce__()[0]
    names = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
    numbers = (np.number, np.bool_)
    dtypes = [found for found in vars(np.dtypes).values() if isinstance(found, type)]
    return [
        *((make, name) for name in names),
        np.dtype,
        *(found for found in dtypes if issubclass(getattr(found, "type", object), numbers)),
    ]


def _reason(file: Path, error: Exception) -> str:
    """Why torch.load refused the file, and what to do, in words of ours: torch's are a page long."""
    if plain_pickle(_head(file)):
        what = f"pickle.load(open({str(file)!r}, 'rb'))"
        return f"it is a pickle that torch.save did not write. {_SAVE_AGAIN.format(what=what)}"
    members = _members(file) if zipfile.is_zipfile(file) else []
    if any(name.endswith("/constants.pkl") for name in members):
        what = f"torch.jit.load({str(file)!r}).state_dict()"
        return f"it is a TorchScript program. {_SAVE_AGAIN.format(what=what)}"
    if members and not any(name.endswith("data.pkl") for name in members):
        return f"it is a zip archive that torch.save did not write: unpack it first; it holds {members[0]}"
    whole = _WHOLE.format(path=str(file))
    blocked = _blocked_types(file, error)
    if _has_modules(file, blocked):
        again = _SAVE_AGAIN.format(what=f"{whole}.state_dict()")
        return f"it holds a whole model, pickled with its code: {', '.join(blocked[:3])}. {again}"
    if blocked:
        what = f"{whole}['params']"
        if any(name.startswith("numpy.") for name in blocked):  # those may be the weights
            what = f"{{name: torch.as_tensor(value) for name, value in {what}.items()}}"
        again = _SAVE_AGAIN.format(what=what)
        return (
            f"beside weights it holds objects that would run code when read: {', '.join(blocked[:3])}. {again}, "
            f"where 'params' stands for the key of the weights in it"
        )
    return f"it is damaged or cut short, or no checkpoint: {_line(error)}"


def _blocked_types(file: Path, error: Exception) -> list[str]:
    """Full names of the types in the file that are not read, the one that stopped the reading first."""
    named = re.findall(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error))
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            others = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # of an old or damaged file it says nothing
        others = []
    return list(dict.fromkeys([*named, *sorted(others)]))


def _has_modules(file: Path, blocked: list[str]) -> bool:
    if any(name.startswith("torch.nn.modules.") for name in blocked):
        return True
    with file.open("rb") as opened:  # the format before PyTorch 1.6: a plain pickle
        return bool(blocked) and b"ctorch.nn.modules." in opened.read(1 << 20)


def _line(error: Exception) -> str:
    """The line of an error that says something, as plain text."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if text.startswith(
        "Weights only load failed"
    ):  # then it tells of weights_only, which is not our user's to set
        text = text.partition("WeightsUnpickler error: ")[2] or text.partition("\n")[2]
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first if first.isprintable() else repr(first)}"
