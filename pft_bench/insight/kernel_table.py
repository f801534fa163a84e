"""What the compilers made of the kernels: registers, spills, shared memory, blocks per SM, instructions.

CUDA: read from the fat binary, or the wheel that holds it, with cuobjdump (of the CUDA toolkit or of Triton's package);
launch geometry from a dry run of the launchers in the emulator, at the shapes of the published classical model.
Triton: compiled ahead of time (`triton_table`). No GPU is needed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..reference import Layer

DTYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Multiprocessor:
    """What one SM of a compute capability has (CUDA C++ Programming Guide, "Compute Capabilities")."""

    shared_bytes: int
    max_warps: int
    max_blocks: int
    shared_limit: int
    """Dynamic shared memory that one block may ask for."""


ARCHITECTURES = {
    80: Multiprocessor(164 << 10, 64, 32, 163 << 10),
    86: Multiprocessor(100 << 10, 48, 16, 99 << 10),
    89: Multiprocessor(100 << 10, 48, 24, 99 << 10),
    90: Multiprocessor(228 << 10, 64, 32, 227 << 10),
    100: Multiprocessor(228 << 10, 64, 32, 227 << 10),
    120: Multiprocessor(100 << 10, 48, 24, 99 << 10),
}
_REGISTERS = 64 << 10
_REGISTER_UNIT = 256  # a warp's registers are handed out in this unit
_SHARED_UNIT = 128
_SHARED_RESERVED = 1 << 10  # of every block, for the system


def blocks_per_sm(arch: int, threads: int, registers: int, shared_bytes: int) -> int:
    """Resident blocks by the rules of cuda_occupancy.h; 0 if the block cannot run at all."""
    sm = ARCHITECTURES[arch]
    if shared_bytes > sm.shared_limit:
        return 0
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    # four sub-partitions share the registers, a warp lives in one of them
    by_registers = _REGISTERS // 4 // per_warp * 4 // warps if registers else sm.max_blocks
    shared = -(-(shared_bytes + _SHARED_RESERVED) // _SHARED_UNIT) * _SHARED_UNIT
    return min(by_registers, sm.max_warps // warps, sm.max_blocks, sm.shared_bytes // shared)


@dataclass
class Kernel:
    """One instance of a kernel in a binary, for one architecture."""

    name: str
    types: tuple[str, ...]
    arch: int
    registers: int
    stack_bytes: int
    local_bytes: int
    static_shared_bytes: int
    instructions: Counter[str] = field(default_factory=Counter)
    threads: int = 0
    dynamic_shared_bytes: int = 0

    @property
    def label(self) -> str:
        """Name with template types."""
        return f"{self.name}<{', '.join(self.types)}>" if self.types else self.name

    @property
    def is_float32(self) -> bool:
        """Whether all its operands are: float32 weights of 16-bit rows may enter tensor cores in two parts."""
        return set(self.types) == {"float32"}

    @property
    def blocks_per_sm(self) -> int:
        """Resident blocks at the launch geometry of the classical model; 0 where that is unknown."""
        if not self.threads:
            return 0
        shared = self.static_shared_bytes + self.dynamic_shared_bytes
        return blocks_per_sm(self.arch, self.threads, self.registers, shared)


def find_tool(name: str) -> Path | None:
    """`cuobjdump` or `nvdisasm`: on PATH, beside nvcc, under CUDA_HOME, or in Triton's package."""
    places = [shutil.which(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        places.append(str(Path(nvcc).resolve().parent / name))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            places.append(str(Path(os.environ[variable]) / "bin" / name))
    for folder in sys.path:
        places.append(str(Path(folder) / "triton" / "backends" / "nvidia" / "bin" / name))
    return next((Path(p) for p in places if p and Path(p).is_file()), None)


def find_binary() -> Path | None:
    """The compiled CUDA module: $PFT_CUDA_BINARY (a module or a wheel), the installed one, or one built here.

    One that was built here is left out when a kernel's source is newer.
    """
    if os.environ.get("PFT_CUDA_BINARY"):
        return Path(os.environ["PFT_CUDA_BINARY"])
    package = Path(__file__).resolve().parent.parent
    root = package.parent
    folders = [package, *(Path(p) / "pft_bench" for p in sys.path)]
    installed = [p for folder in folders for p in sorted(folder.glob("_cuda.*.so"))]
    built = [
        p for pattern in ("build*/", "build/*/") for p in root.glob(f"{pattern}bindings/cuda/_cuda.*.so")
    ]
    sources = list((root / "kernels" / "cuda").glob("*.cu*"))
    changed = max((p.stat().st_mtime for p in sources), default=0.0)
    return next(iter(installed + [p for p in built if p.stat().st_mtime > changed]), None)


@contextmanager
def module_of(binary: Path) -> Iterator[Path]:
    """The compiled module itself: `binary`, or what a wheel holds."""
    if binary.suffix != ".whl":
        yield binary
        return
    with zipfile.ZipFile(binary) as wheel, tempfile.TemporaryDirectory() as folder:
        members = [name for name in wheel.namelist() if re.fullmatch(r"pft_bench/_cuda\..*so", name)]
        if not members:
            raise FileNotFoundError(f"{binary} holds no CUDA module: it was built without a CUDA compiler")
        yield Path(wheel.extract(members[0], folder))


def _run(tool: str, *arguments: str) -> str:
    path = find_tool(tool)
    if path is None:
        raise FileNotFoundError(
            f"{tool} not found: install the CUDA toolkit, or Triton, whose package has it"
        )
    environment = os.environ | {"PATH": f"{path.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run([path, *arguments], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def parse_name(mangled: str) -> tuple[str, tuple[str, ...]] | None:
    """Kernel and template types from an Itanium-mangled name of this project; None for anything else."""
    match = re.match(r"_ZN3pft4cuda(\d+)", mangled)
    if match is None:
        return None
    rest = mangled[match.end() + int(match.group(1)) :]  # past the anonymous namespace
    match = re.match(r"\d+", rest)
    if match is None:
        return None
    end = match.end() + int(match.group())
    name, rest = rest[match.end() : end].removesuffix("_kernel"), rest[end:]
    types: list[str] = []
    if rest.startswith("I"):
        rest = rest[1:]
        while (token := re.match(r"f|6__half|13__nv_bfloat16|S\d*_|Lb[01]E", rest)) is not None:
            text, rest = token.group(), rest[token.end() :]
            if text == "Lb1E":
                name += "_keys"
            elif text == "Lb0E":
                name += "_queries"
            else:
                types.append(DTYPES.get(text, types[0] if types else "?"))
    return name, tuple(types)


def read_resources(binary: Path) -> list[Kernel]:
    """Every kernel of the binary with its registers, stack and shared memory."""
    kernels, arch, mangled = [], 0, ""
    for line in _run("cuobjdump", "-res-usage", str(binary)).splitlines():
        if (found := re.search(r"arch = sm_(\d+)", line)) is not None:
            arch = int(found.group(1))
        elif (found := re.search(r"Function (\S+):", line)) is not None:
            mangled = found.group(1)
        if (found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line)) is None:
            continue
        parsed = parse_name(mangled)
        if parsed is not None:
            registers, stack, shared, local = map(int, found.groups())
            if arch >= 90:  # there it counts what the system reserves, which blocks_per_sm adds itself
                shared = max(0, shared - _SHARED_RESERVED)
            kernels.append(Kernel(*parsed, arch, registers, stack, local, shared))
    return kernels


def read_instructions(binary: Path, kernels: list[Kernel]) -> None:
    """Counts the SASS instructions (mnemonic with modifiers) of each kernel, in place."""
    by_name = {(k.arch, k.label): k for k in kernels}
    arch, current = 0, None
    for line in _run("cuobjdump", "-sass", str(binary)).splitlines():
        if (found := re.search(r"code for sm_(\d+)", line)) is not None:
            arch = int(found.group(1))
        elif (found := re.search(r"Function : (\S+)", line)) is not None:
            parsed = parse_name(found.group(1))
            current = None
            if parsed is not None:
                name, types = parsed
                current = by_name.get((arch, f"{name}<{', '.join(types)}>" if types else name))
        elif current is not None:
            found = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", line)
            if found is not None:
                current.instructions[found.group(1)] += 1


def launch_geometry(arch: int, kept: int = 256) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, dtype) -> (threads, dynamic shared bytes) at N = M = 1024, D = 40, K = `kept`, by a dry run."""
    from ..backends.cuda_emu import CudaEmulatorBackend

    backend = CudaEmulatorBackend()
    reason = backend.available()
    if reason is not None:
        raise RuntimeError(f"launch geometry comes from the emulator: {reason}")
    emulator = backend.native()
    geometry = {}
    try:
        emulator.configure(dry=True, shared_limit=ARCHITECTURES[arch].shared_limit)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            emulator.take_dry_launches()
            for rung in (
                "plain",
                "resident",
                "sorted",
                "gather",
                *(("ffma",) if dtype == torch.float32 else ()),
            ):
                _launch_everything(CudaEmulatorBackend(rung), dtype, kept)
            for name, _, threads, shared in emulator.take_dry_launches():
                geometry[name, str(dtype).removeprefix("torch.")] = (threads, shared)
    finally:
        emulator.configure()
    return geometry


def _launch_everything(backend: object, dtype: torch.dtype, kept: int) -> None:
    """One call of each op at the classical model's shape; in a dry run nothing is read or written."""
    windows, heads, n, d, w = 8, 1, 1024, 40, 32
    run: object = backend
    q, k, v = (torch.empty(windows, heads, n, d, dtype=dtype) for _ in range(3))
    bias = torch.empty((2 * w - 1) ** 2, heads)
    index = torch.empty(windows, heads, n, kept, dtype=torch.int16)
    logits = torch.empty(windows, heads, n, kept)
    a = torch.empty(windows, n, kept, dtype=dtype)
    flat = q.flatten(0, 1)
    run.sddmm(flat, flat, index.flatten(0, 1))  # type: ignore[attr-defined]
    run.spmm(a, flat, index.flatten(0, 1))  # type: ignore[attr-defined]
    run.spmm_transpose(a, flat, index.flatten(0, 1), n)  # type: ignore[attr-defined]
    for layer_index, layer_logits, topk in ((None, None, n), (None, None, kept), (index, logits, kept // 2)):
        layer = Layer(q, k, v, bias, None, layer_index, layer_logits, 1.0, 100.0, topk)
        out, new_index, new_logits, lse = run.attention_forward(layer)  # type: ignore[attr-defined]
        run.attention_backward(layer, out, new_logits, new_index, out, lse)  # type: ignore[attr-defined]


def kernel_table(binary: Path | None = None, *, sass: bool = True) -> list[Kernel]:
    """All kernels of the binary, all its architectures, with geometry where the emulator is there."""
    binary = binary or find_binary()
    if binary is None:
        raise FileNotFoundError(
            "no compiled CUDA module: build one with `make wheel`, or set PFT_CUDA_BINARY"
        )
    with module_of(binary) as module:
        kernels = read_resources(module)
        if sass:
            read_instructions(module, kernels)
    for arch in sorted({k.arch for k in kernels} & set(ARCHITECTURES)):
        geometry = launch_geometry(arch)
        for kernel in kernels:
            dtype = kernel.types[-1] if kernel.types else "float32"
            # sddmm's operands come first in its list of types, the output's last
            dtype = kernel.types[0] if kernel.name.startswith("sddmm") else dtype
            if kernel.arch == arch and (kernel.name, dtype) in geometry:
                kernel.threads, kernel.dynamic_shared_bytes = geometry[kernel.name, dtype]
    return sorted(kernels, key=lambda k: (k.name, k.types, k.arch))


_SHOWN = ("LDS.128", "STS.128", "LDG.E.128", "LDGSTS", "LDSM", "HMMA", "FFMA", "LDL", "STL", "ATOM", "RED")

_GATHER = ("LDGSTS", "LDS.128")  # rows arrive asynchronously and are read 16 bytes at a time
_TENSOR = ("LDGSTS", "LDSM", "HMMA")
_SPLIT = ("LDG.E.128", "LDSM", "HMMA.16816.F32.BF16")
_EXPECTED: dict[str, tuple[str, ...]] = {
    "sddmm_resident": _GATHER,
    "sddmm_tiles": _TENSOR,
    "spmm_resident": _GATHER,
    "spmm_tiles": ("LDSM", "HMMA"),
    "spmm_transpose_owner": ("LDS.128", "STS.128"),
    "spmm_transpose_sorted": ("STS.64",),
    "spmm_transpose_tiles": ("LDSM", "HMMA"),
    "spmm_transpose_split": _SPLIT,
    "attention_forward_sparse": _GATHER,
    "attention_backward_sparse": _GATHER,
    "attention_forward_tiled": _TENSOR,
    "attention_backward_tiled": _TENSOR,
    "attention_forward_dense": _TENSOR,
    "attention_forward_online": _TENSOR,
    "attention_forward_dense_split": _SPLIT,
    "attention_forward_online_split": _SPLIT,
    "attention_forward_tiled_split": _SPLIT,
    "attention_backward_tiled_split": _SPLIT,
    "attention_backward_dense_keys": _TENSOR,
    "attention_backward_dense_queries": _TENSOR,
    "attention_backward_dense_split_keys": _SPLIT,
    "attention_backward_dense_split_queries": _SPLIT,
}

SPLIT = frozenset(name for name, wanted in _EXPECTED.items() if wanted is _SPLIT)
"""Kernels of float32 that multiply it as sums of three bfloat16 numbers: the only ones with tensor cores."""


def count(kernel: Kernel, mnemonic: str) -> int:
    """Instructions whose name is `mnemonic` or begins with it and a dot; LDS.128 also matches LDS.U.128."""
    if mnemonic.endswith(".128"):
        first = mnemonic.removesuffix(".128").split(".")[0]
        return sum(
            n
            for name, n in kernel.instructions.items()
            if name.split(".")[0] == first and name.endswith(".128")
        )
    exact = (mnemonic, mnemonic + "S", mnemonic + "G") if mnemonic == "ATOM" else (mnemonic,)
    return sum(
        n for name, n in kernel.instructions.items() if any(f"{name}.".startswith(f"{e}.") for e in exact)
    )


def expected(kernel: Kernel) -> tuple[str, ...]:
    """Instructions without which a kernel is not what it was written to be; float32 has tensor cores in SPLIT alone."""
    names = _EXPECTED.get(kernel.name, ())
    return tuple(n for n in names if n not in ("LDSM", "HMMA")) if kernel.is_float32 else names


def unwanted(kernel: Kernel) -> dict[str, int]:
    """Spills, atomics that leave the order of a sum to the hardware, tensor cores in float32, TF32: with their counts.

    float32 may enter tensor cores in the kernels of SPLIT, and there as bfloat16 only. Bits that join a word in shared
    memory (ATOMS.OR) are the same in any order.
    """
    found = {name: count(kernel, name) for name in ("LDL", "STL", "ATOM", "RED")}
    found["ATOM"] -= kernel.instructions["ATOMS.OR"]
    found["stack"] = kernel.stack_bytes + kernel.local_bytes
    found["TF32"] = sum(n for name, n in kernel.instructions.items() if "TF32" in name)
    if kernel.is_float32:
        found["HMMA"] = count(kernel, "HMMA")
    if kernel.name in SPLIT:
        found["HMMA"] = count(kernel, "HMMA") - count(kernel, "HMMA.16816.F32.BF16")
    return {name: n for name, n in found.items() if n}


def render(kernels: list[Kernel]) -> str:
    """The table as Markdown, one row per kernel and architecture."""
    head = ["kernel", "sm", "registers", "spilled B", "shared KB", "threads", "blocks/SM", "as expected"]
    head += _SHOWN
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for k in kernels:
        missing = [name for name in expected(k) if not count(k, name)]
        bad = [f"no {name}" for name in missing] + [f"{name} {n}" for name, n in unwanted(k).items()]
        wanted = " ".join(expected(k)) or "-"
        shared = (k.static_shared_bytes + k.dynamic_shared_bytes) / 1024
        cells = [k.label, k.arch, k.registers, k.stack_bytes + k.local_bytes, f"{shared:.1f}"]
        cells += [k.threads or "-", k.blocks_per_sm if k.threads else "-"]
        cells += [f"**{', '.join(bad)}**" if bad else wanted, *(count(k, name) for name in _SHOWN)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def report(binary: Path | None = None, *, triton: bool = True) -> str:
    """Both families' tables as one Markdown page."""
    kernels = kernel_table(binary)
    architectures = ", ".join(f"sm_{a}" for a in sorted({k.arch for k in kernels}))
    spilling = sum(1 for k in kernels if k.stack_bytes or k.local_bytes)
    text = [
        "# What the compilers made of the kernels",
        "",
        "Rendered by `make kernel-report`; nothing here ran on a GPU. One layer of the published classical model:",
        "N = M = 1024, head_dim 40.",
        "",
        "## CUDA",
        "",
        f"{len(kernels)} instances for {architectures}, {spilling} of them spill. Shared memory and blocks per SM at",
        "K = 256. *As expected* names the instructions that a kernel must have, or what is wrong; the columns after it",
        "count instructions in the SASS. The atomics of the kernels with tiles join bits (ATOMS.OR).",
        "",
        render(kernels),
    ]
    if triton:
        import triton as library

        from . import triton_table

        rows = triton_table.compile_jobs(triton_table.jobs_of(triton_table.TARGETS, ("float16", "float32")))
        spilling = sum(1 for row in rows if row.spilled_bytes)
        text += [
            "",
            "## Triton",
            "",
            f"Triton {library.__version__}: {len(rows)} compilations at the default configuration, {spilling} of them"
            " spill.",
            "",
            triton_table.render(rows),
        ]
    return "\n".join(text) + "\n"


def main() -> None:
    """`python -m pft_bench.insight.kernel_table [BINARY] [--no-triton] [--out FILE]`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "binary", nargs="?", type=Path, help="compiled CUDA module or wheel (default: look for one)"
    )
    parser.add_argument(
        "--no-triton", action="store_true", help="leave out the Triton kernels: they take minutes"
    )
    parser.add_argument("--out", type=Path, help="write there instead of printing")
    options = parser.parse_args()
    text = report(options.binary, triton=not options.no_triton)
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text)
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
