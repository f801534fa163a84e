"""Instructions of a launch by unit: the kernel's SASS (committed, of sm_90) times how often each of its blocks ran."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .compiled import Instructions, compiled
from .counted import CountedLaunch, places
from .emulate import module_path
from .executions import executions
from .listing import SassBlock

SOURCES = Path(__file__).resolve().parents[3] / "kernels" / "cuda"
UNITS = ("issue", "alu", "fma", "imad", "mufu")


def sources_digest(folder: Path = SOURCES) -> str | None:
    """Digest of the kernels' sources, None where they are not here."""
    files = sorted(folder.glob("*.cu*"))
    if not files:
        return None
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def is_stale() -> bool:
    """Whether the kernels have changed since their SASS was committed: its lines would be those of other code."""
    now = sources_digest()
    return now is not None and now != compiled().get("sources")


def why_no_instructions() -> str | None:
    """Why issue, ALU and FMA can only be bounded from below here; None where the SASS says them."""
    if is_stale():
        return "the kernels have changed since their SASS was committed (make counters-sass, with nvcc)"
    if shutil.which("addr2line") is None:
        return "addr2line (of binutils) is not installed, so that places in the SASS cannot be found"
    return None


def instructions_of(launch: CountedLaunch) -> Instructions | None:
    """Warp instructions of the emulated blocks; None where the kernel's SASS is not known or not that of its source.

    Of several instances of a kernel (output types), the one that agrees best with the counts is taken.
    """
    kernels = {} if is_stale() else compiled().get("kernels", {})
    labels = [
        label
        for label in kernels
        if label.split("<")[0] == launch.kernel and (launch.dtype in label or "<" not in label)
    ]
    counted, steps = anchors(launch)
    if not labels or not counted:
        return None
    found = []
    for label in labels:
        blocks = unpack(kernels[label], compiled()["lines"])
        ran, explained = executions(blocks, counted, steps, launch.warps)
        sums = {
            unit: sum(b.units[unit] * times for b, times in zip(blocks, ran, strict=True)) for unit in UNITS
        }
        found.append(Instructions(**sums, explained=explained))
    return max(found, key=lambda one: one.explained)


def anchors(launch: CountedLaunch) -> tuple[Counter[tuple[str, int, tuple[str, ...]]], Counter[str]]:
    """What was counted, as the listing names it: requests by kind, width and place, and steps of whole warps."""
    where = places(module_path(), [site.offset for site in launch.sites])
    requests: Counter[tuple[str, int, tuple[str, ...]]] = Counter()
    for site in launch.sites:
        if (site.kind, site.space) != ("async", "global") and where.get(site.offset):
            requests[f"{site.kind} {site.space}", site.bytes, where[site.offset]] += site.requests
    steps: Counter[str] = Counter()
    for _, step, count in launch.steps:
        if step != "syncwarp":  # most of them leave nothing in the SASS
            steps[step] += count
    steps["exp"] = launch.ops["exp"]
    return requests, steps


def lines_of(listed: Iterable[list[SassBlock]]) -> list[str]:
    """All lines of the source that places of these kernels name: the committed file has each once."""
    return sorted(
        {line for blocks in listed for block in blocks for key in block.accesses for line in key[2]}
    )


def pack(blocks: list[SassBlock], lines: Sequence[str]) -> dict[str, Any]:
    """A listing as the committed file holds it: kinds of access with their bytes, and places, by number, a place as the
    numbers of its `lines`; units in the order of UNITS.
    """
    line_number = {line: n for n, line in enumerate(lines)}
    kinds = sorted({key[:2] for block in blocks for key in block.accesses})
    chains = sorted({key[2] for block in blocks for key in block.accesses})
    kind_number = {kind: n for n, kind in enumerate(kinds)}
    number = {chain: n for n, chain in enumerate(chains)}
    rows = [
        [
            [block.units[unit] for unit in UNITS],
            [
                [kind_number[kind, size], number[chain], times, int((kind, size, chain) in block.optional)]
                for (kind, size, chain), times in sorted(block.accesses.items())
            ],
            dict(sorted(block.steps.items())),
            block.after,
        ]
        for block in blocks
    ]
    return {
        "kinds": [f"{kind} {size}" for kind, size in kinds],
        "places": [[line_number[line] for line in chain] for chain in chains],
        "blocks": rows,
    }


def unpack(packed: dict[str, Any], lines: Sequence[str]) -> list[SassBlock]:
    """The opposite of `pack`."""
    kinds = [(kind, int(size)) for kind, size in (text.rsplit(" ", 1) for text in packed["kinds"])]
    chains = [tuple(lines[n] for n in place) for place in packed["places"]]
    blocks = []
    for units, accesses, steps, after in packed["blocks"]:
        keys = [((*kinds[kind], chains[n]), times, optional) for kind, n, times, optional in accesses]
        blocks.append(
            SassBlock(
                Counter(dict(zip(UNITS, units, strict=True))),
                Counter({key: times for key, times, _ in keys}),
                Counter(steps),
                {key for key, _, optional in keys if optional},
                list(after),
            )
        )
    return blocks
