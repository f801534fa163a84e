"""Instructions of a launch by unit: the kernel's SASS (committed, of sm_90) times how often each of its blocks ran.

`make counters-sass` makes the committed file anew from the sources here; it needs nvcc, and nvdisasm and
cuobjdump (of the CUDA toolkit or of Triton's package), and no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ...common.drafts import draft
from ...common.processes import output_of
from ..kernel_table import find_tool, read_resources
from .chips import CHIPS
from .compiled import COMPILED, Instructions, compiled
from .counted import CountedLaunch, places
from .emulate import module_path
from .executions import executions
from .listing import SassBlock, read_listing

LISTED = 90
"""The architecture whose SASS is committed; it stands for the others too."""
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
        blocks = unpack(kernels[label])
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


def pack(blocks: list[SassBlock]) -> dict[str, Any]:
    """A listing as the committed file holds it: places by number, units in the order of UNITS."""
    chains = sorted({key[2] for block in blocks for key in block.accesses})
    number = {chain: n for n, chain in enumerate(chains)}
    rows = [
        [
            [block.units[unit] for unit in UNITS],
            [
                [kind, size, number[chain], times, int((kind, size, chain) in block.optional)]
                for (kind, size, chain), times in sorted(block.accesses.items())
            ],
            dict(sorted(block.steps.items())),
            block.after,
        ]
        for block in blocks
    ]
    return {"places": [" < ".join(chain) for chain in chains], "blocks": rows}


def unpack(packed: dict[str, Any]) -> list[SassBlock]:
    """The opposite of `pack`."""
    chains = [tuple(place.split(" < ")) if place else () for place in packed["places"]]
    blocks = []
    for units, accesses, steps, after in packed["blocks"]:
        keys = [((kind, size, chains[n]), times, optional) for kind, size, n, times, optional in accesses]
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


def compile_kernels(arch: int, folder: Path) -> list[Path]:
    """Objects of all kernels for one architecture with line numbers; what is in `folder` already is kept."""
    made = []
    for source in sorted(SOURCES.glob("*.cu")):
        out = folder / f"{source.stem}.sm_{arch}.cubin"
        made.append(out)
        if out.is_file():
            continue
        flags = ["-std=c++17", "-O3", f"-arch=sm_{arch}", "-lineinfo", f"-I{SOURCES.parent / 'include'}"]
        with draft(out) as written:
            output_of(["nvcc", *flags, "-cubin", source, "-o", written]).check_returncode()
    return made


def _run_nvdisasm(cubin: Path) -> str:
    tool = find_tool("nvdisasm")
    assert tool is not None
    return subprocess.run([tool, "-c", "-gi", cubin], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Compile, read, write the committed file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    architectures = sorted({chip.arch for chip in CHIPS.values()})
    parser.add_argument("--arch", type=int, action="append", help=f"only these of {architectures}")
    parser.add_argument(
        "--objects", type=Path, help="folder for the compiled objects; those in it are not made again"
    )
    options = parser.parse_args()
    for tool in ("nvdisasm", "cuobjdump"):
        if find_tool(tool) is None:
            parser.error(f"{tool} not found: install the CUDA toolkit, or Triton, whose package has it")
    if shutil.which("nvcc") is None:
        parser.error("nvcc not found: install the CUDA toolkit")
    made = compiled() if COMPILED.is_file() else {}
    registers = dict(made.get("registers", {}))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.objects or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for arch in options.arch or architectures:
            objects = compile_kernels(arch, folder)
            resources = sorted((k.label, k.registers) for path in objects for k in read_resources(path))
            registers[str(arch)] = dict(resources)
            if arch == LISTED:
                listed = {
                    label: pack(b)
                    for path in objects
                    for label, b in read_listing(_run_nvdisasm(path)).items()
                }
                made = made | {"sources": sources_digest(), "kernels": dict(sorted(listed.items()))}
    text = json.dumps(made | {"registers": registers}, separators=(",", ":"))
    COMPILED.write_text(re.sub(r'(\},|\{)("[^"]{1,80}":\{"places")', r"\1\n\2", text) + "\n")


if __name__ == "__main__":
    main()
