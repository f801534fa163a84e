"""Counts at small shapes, which are exact: no kernel's wavefronts, sectors or matrix products may rise unnoticed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .chips import CHIPS
from .counted import CountedLaunch
from .emulate import Work, count_launches

GATED = ("wavefronts", "read_sectors", "write_sectors", "async_sectors", "mma")
RENEW = "if that is meant, renew the committed counts: make counters-gates"
TOKENS, HEADS, HEAD_DIM = 64, 2, 40
_STEPS = ((64, 64), (64, 16), (32, 32), (32, 16))


def gated_works() -> list[Work]:
    """Every kernel's default path once: products, layers forward and backward, gather and tiles."""
    sizes = (1, HEADS, TOKENS, HEAD_DIM)
    works = []
    for dtype in ("float32", "float16"):
        works += [Work(op, *sizes, 24, 24, dtype) for op in ("sddmm", "spmm", "spmm_transpose")]
        works.append(Work("spmm_transpose", *sizes, 2, 2, dtype))  # few entries: sorted
        if dtype == "float32":
            works.append(Work("spmm_transpose", *sizes, 2, 2, dtype, how="resident"))
        for c, k in _STEPS:
            tiles = "tiles" if dtype == "float16" else "split"
            ways = ("gather", tiles) if c < TOKENS else ("auto",)
            works += [Work("attention", *sizes, c, k, dtype, how=how) for how in ways]
        works += [Work("attention", *sizes, c, k, dtype, "backward") for c, k in _STEPS[:3:2] + _STEPS[1:2]]
    works.append(Work("attention", *sizes, 32, 32, "float32", "backward", how="gather"))
    return works


def key_of(work: Work) -> str:
    """Name of a work in the committed file."""
    return f"{work.title} {work.dtype}"


def gate_counts(works: Iterable[Work] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Counts of all launches of the gated works: all blocks of all their window-heads run."""
    found = {}
    for work in gated_works() if works is None else works:
        launches = count_launches(work, CHIPS["h100"], window_heads=None, stride=1)
        found[key_of(work)] = [{"kernel": launch.kernel} | launch.totals() for launch in launches]
    return found


def risen(committed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What counts more than committed, or is not there: one line each; empty where the gate holds."""
    found = []
    for key, launches in now.items():
        before = committed.get(key)
        if before is None:
            found.append(f"{key}: has no committed counts")
            continue
        names = [launch["kernel"] for launch in launches]
        if names != [launch["kernel"] for launch in before]:
            found.append(f"{key}: launches {', '.join(names)} are not those that were committed")
            continue
        for old, new in zip(before, launches, strict=True):
            found += [
                f"{key}: {new['kernel']} has {new.get(name, 0)} {name}, committed are {old.get(name, 0)}"
                for name in GATED
                if new.get(name, 0) > old.get(name, 0)
            ]
    return found


def gate_of(launch: CountedLaunch) -> dict[str, Any]:
    """One launch as the committed file holds it."""
    return {"kernel": launch.kernel} | launch.totals()
