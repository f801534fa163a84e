"""Tile sizes: reasoned defaults, an override for repeatable benchmarks, and an autotuner that is off until asked for.

In this order: an explicit argument; `PFT_TRITON_CONFIG`, JSON such as ``{"spmm": {"rows": 8, "warps": 2}}`` whose
fields replace those of the default; with `PFT_TRITON_AUTOTUNE=1` on a GPU the fastest candidate, measured once and
kept in `PFT_TRITON_CACHE` (default ~/.cache/pft_bench/triton.json); else the default. Tile sizes fix the order of
sums, so a tuned choice changes last bits: therefore it is opt-in, and stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Config:
    """Tile sizes and launch options. What a kernel does not use it ignores."""

    rows: int = 16
    """Rows that a program owns: queries, or keys where the sum runs over queries."""
    cols: int = 64
    """Columns of a tile: kept entries, keys of a dense tile, or queries where rows are keys."""
    dim: int = 16
    """Channels multiplied at a time."""
    terms: int = 4
    """Gathered rows in flight for each row of the tile."""
    dense: int = 0
    """Logits of listed entries: 0 gathers their keys, else dense tiles of so many keys are computed and picked from."""
    precision: str = "ieee"
    """tl.dot of float32 weights with inputs: "ieee", or "tf32x3" for half-precision inputs."""
    warps: int = 4
    stages: int = 1
    registers: int = 0
    """Registers that a thread may have (PTX maxnreg); 0: the compiler chooses, and spills a little for occupancy."""

    def with_overrides(self, overrides: dict[str, Any]) -> Config:
        """A copy with the named fields replaced; ValueError for a name that is not a field."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(f"a Triton config has {', '.join(sorted(known))}, got {', '.join(unknown)}")
        return replace(self, **overrides)


class Measurable(Protocol):
    """What the autotuner needs of a launch."""

    def run(self) -> None:
        """Start the kernel."""

    def shared_bytes(self) -> int:
        """Shared memory of a program."""


def override(op: str) -> dict[str, Any]:
    """The fields that `PFT_TRITON_CONFIG` sets for `op`."""
    text = os.environ.get("PFT_TRITON_CONFIG", "")
    if not text:
        return {}
    try:
        chosen = json.loads(text)
        return dict(chosen.get(op, {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f'PFT_TRITON_CONFIG must be JSON like {{"spmm": {{"rows": 8}}}}, got {text!r}'
        ) from error


def choose(
    op: str,
    default: Config,
    explicit: Config | None = None,
    *,
    candidates: Sequence[Config] = (),
    plan: Callable[[Config], Measurable] | None = None,
    key: str = "",
    device: torch.device | None = None,
) -> Config:
    """The configuration of `op` for one launch, in the order that this module's docstring gives."""
    if explicit is not None:
        return explicit
    fixed = override(op)
    if fixed:
        return default.with_overrides(fixed)
    tuning = os.environ.get("PFT_TRITON_AUTOTUNE") == "1"
    if not tuning or plan is None or device is None or device.type != "cuda":
        return default
    import triton

    properties = torch.cuda.get_device_properties(device)
    name = f"{properties.name} | triton {triton.__version__} | {op} | {key}"
    limit = int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))
    return tuned(name, [default, *candidates], plan, limit, _bench)


def _bench(launch: Measurable) -> float:
    """Median milliseconds of a launch."""
    from triton.testing import do_bench

    return float(do_bench(launch.run, return_mode="median"))


def cache_file() -> Path:
    """Where tuned configurations are kept."""
    return Path(os.environ.get("PFT_TRITON_CACHE") or Path.home() / ".cache" / "pft_bench" / "triton.json")


def tuned(
    name: str,
    candidates: Sequence[Config],
    plan: Callable[[Config], Measurable],
    shared_limit: int,
    bench: Callable[[Measurable], float],
) -> Config:
    """The stored choice called `name`, else the fastest candidate whose shared memory fits, which is then stored."""
    path = cache_file()
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if name in stored:
        return Config().with_overrides(stored[name])
    best, best_ms = candidates[0], float("inf")
    for candidate in dict.fromkeys(candidates):
        launch = plan(candidate)
        if launch.shared_bytes() > shared_limit:
            continue
        elapsed_ms = bench(launch)
        if elapsed_ms < best_ms:
            best, best_ms = candidate, elapsed_ms
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({**stored, name: asdict(best)}, indent=1, sort_keys=True))
    partial.replace(path)
    return best
