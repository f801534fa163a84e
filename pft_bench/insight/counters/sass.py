"""Makes the committed SASS anew from the sources here, by `make counters-sass`.

It needs nvcc, and nvdisasm and cuobjdump (of the CUDA toolkit or of Triton's package), and no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...common.drafts import draft
from ...common.processes import output_of
from ..kernel_table import find_tool, read_resources
from .chips import CHIPS
from .compiled import COMPILED, compiled
from .instructions import SOURCES, lines_of, pack, sources_digest
from .listing import read_listing

LISTED = 90
"""The architecture whose SASS is committed; it stands for the others too."""


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
                listed = {k: b for path in objects for k, b in read_listing(_run_nvdisasm(path)).items()}
                lines = lines_of(listed.values())
                kernels = {label: pack(blocks, lines) for label, blocks in sorted(listed.items())}
                made = made | {"sources": sources_digest(), "lines": lines, "kernels": kernels}
    text = json.dumps(made | {"registers": registers}, separators=(",", ":"))
    COMPILED.write_text(re.sub(r'(\},|\{)("[^"]{1,80}":\{"kinds")', r"\1\n\2", text) + "\n")


if __name__ == "__main__":
    main()
