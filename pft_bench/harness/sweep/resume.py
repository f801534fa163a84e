"""Can a folder be resumed? What its rows depend on is held against what this run would measure with.

Rows of other schedules, levels or backends may join a folder: each row says what it is. What no row says (rounds,
budget, the contents of the inputs, the code) must be the same, or the folder would mix what cannot be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.text import Lines
from ..cases import Settings
from ..record import Record, Status
from .isolation import Workers

LIMITS = {"timeout": Status.TIMEOUT, "memory-limit": Status.OOM}
"""Settings that decide nothing but whether a row ends with this status."""
READ_ALONE = ("fingerprint", "machine", "seal", "host", "now", "threads")
"""Parts of an environment that vary from run to run, follow from others, or are settings."""
NO_MATTER = (
    "libraries.pandas",  # the table's
    *(
        "variables.TORCHELASTIC",
        "variables.TORCH_NCCL",
        "variables.CUDA_VISIBLE_DEVICES",
    ),  # torchrun, to its ranks
    *("variables.TORCHINDUCTOR_CACHE_DIR", "variables.TRITON_CACHE_DIR"),  # where; torch sets it by itself
)
"""Beginnings of parts that decide no number."""
SHOWN = 60

Differences = list[str]


def decisive(settings: Settings, workers: Workers | None) -> dict[str, str]:
    """The settings that decide a number, under the names of their options."""
    limit = None if workers is None else workers.memory_limit_bytes
    return {
        "preset": settings.preset,
        "lr": "x".join(map(str, settings.lr_hw)),
        "image": content(settings.image, "the bundled photograph"),
        "weights": content(settings.weights, "generated"),
        "mode": settings.mode,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": str(settings.threads),
        "seed": str(settings.seed),
        "rounds": str(settings.plan.rounds),
        "budget": f"{settings.plan.budget_s:g} s",
        "isolate": "no" if workers is None else "yes",
        "timeout": "none" if workers is None else f"{workers.timeout_s:g} s",
        "memory-limit": "none" if limit is None else f"{limit} bytes",
    }


def content(path: Path | None, default: str) -> str:
    """A file by its name and content: it may lie elsewhere, but must be the same. A name that is no file's stays."""
    if path is None or not path.is_file():
        return default if path is None else path.name
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"


def differences_of_settings(
    stored: Mapping[str, str], now: Mapping[str, str], records: Sequence[Record]
) -> Differences:
    """One line for each setting that is another one now and that some row depends on."""
    ends = {record.status for record in records}
    found = []
    for name in dict.fromkeys((*now, *stored)):
        before, after = stored.get(name), now.get(name)
        if before != after and (name not in LIMITS or LIMITS[name] in ends):
            found.append(f"--{name}: stored {before}, now {after}")
    return found


def differences_of_environments(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """One line for each part of the machine, software or code that is another one now.

    The commit does not matter where the digest of the code that ran is known: a commit of documents changes no number.
    """
    before, after = (dict(_flat(_comparable(found))) for found in (stored, now))
    if "code" in stored and "code" in now:
        before, after = (
            {key: value for key, value in side.items() if not key.startswith("git")}
            for side in (before, after)
        )
    else:
        before.pop("code", None)
        after.pop("code", None)
    names = [name for name in dict.fromkeys((*before, *after)) if not name.startswith(NO_MATTER)]
    return [
        f"{name}: stored {_short(before.get(name))}, now {_short(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _comparable(found: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON reads it back; plug-ins by their file's name, wherever it lies."""
    lasting: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in found.items() if key not in READ_ALONE}, default=str)
    )
    lasting["plug-in"] = {
        Path(name).name: digest for name, digest in (lasting.pop("plugins", None) or {}).items()
    }
    return lasting


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value


def _short(value: Any) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def refuse(folder: Path, differences: Differences) -> None:
    """ValueError that names each difference, if there is any."""
    if differences:
        raise ValueError(
            Lines.of(
                f"{folder} cannot be resumed: its rows depend on what is different now",
                *(f"  {text}" for text in dict.fromkeys(differences)),
                "Its rows are as they were. Use the same settings and code, or a new --out.",
            )
        )
