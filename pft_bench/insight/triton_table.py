"""What the Triton kernels take of a GPU: registers, spills, shared memory, compiled ahead of time for each target.

No GPU is needed: the backend is called with tensors on the meta device, the launches it would make are recorded,
and each is compiled with the options and specialisations of a real launch. Figures are of the default configuration.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference import Layer

TARGETS = (80, 86, 89, 90, 100, 120)
DTYPES = ("float16", "bfloat16", "float32")
WINDOWS, HEADS, TOKENS, CHANNELS = 4, 6, 1024, 40
"""One layer of the classical model: windows of 32 x 32 tokens, head_dim 40."""

Job = tuple[str, str, tuple[int, ...]]
"""A situation, a dtype, and the targets to compile for."""


@dataclass(frozen=True)
class Resources:
    """One compiled kernel."""

    situation: str
    kernel: str
    dtype: str
    target: int
    """Compute capability without the point: 90 is sm_90."""
    warps: int
    registers: int
    spilled_bytes: int
    """Stack of a thread: Triton has no arrays, so whatever is there was spilled."""
    shared_bytes: int
    tf32: bool = False
    """Whether its PTX multiplies in TF32, which no product of float32 inputs may."""


def situations(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Calls of the backend that together start every kernel, by what they stand for."""
    from ..backends import get

    backend: Any = get("triton")
    qkv = _meta(WINDOWS, TOKENS, 3, HEADS, CHANNELS, dtype=dtype).permute(2, 0, 3, 1, 4)
    rows = [part.flatten(0, 1) for part in _meta(3, WINDOWS, HEADS, TOKENS, CHANNELS, dtype=dtype)]
    chain = _meta(2, WINDOWS, HEADS, TOKENS, 2 * CHANNELS, dtype=dtype)

    def sparse(op: str, kept: int) -> Callable[[], object]:
        index = _meta(WINDOWS * HEADS, TOKENS, kept, dtype=torch.int16)
        weights = _meta(WINDOWS * HEADS, TOKENS, kept, dtype=dtype)
        if op == "sddmm":
            return lambda: backend.sddmm(rows[0], rows[1], index)
        if op == "spmm":
            return lambda: backend.spmm(weights, rows[2], index)
        return lambda: backend.spmm_transpose(weights, rows[2], index, TOKENS)

    def forward(candidates: int, topk: int, q: Tensor = qkv[0], k: Tensor = qkv[1]) -> Callable[[], object]:
        layer = _layer(q, k, qkv[2], candidates, topk)
        return lambda: backend.attention_forward(layer)

    def backward(candidates: int, topk: int) -> Callable[[], object]:
        layer = _layer(qkv[0], qkv[1], qkv[2], candidates, topk)
        out = _meta(WINDOWS, TOKENS, HEADS, CHANNELS, dtype=dtype).transpose(1, 2)
        new_index = _meta(*layer.rows, layer.kept, dtype=torch.int16)
        handed = _meta(*layer.rows, layer.handed_on, dtype=torch.float32) if layer.handed_on else None
        lse = _meta(WINDOWS, HEADS, TOKENS, dtype=torch.float32)
        return lambda: backend.attention_backward(layer, out, handed, new_index, out, lse)

    return {
        "sddmm K=256": sparse("sddmm", 256),
        "sddmm K=16": sparse("sddmm", 16),
        "spmm K=64": sparse("spmm", 64),
        "spmm_transpose K=64": sparse("spmm_transpose", 64),
        "dense layer": forward(0, TOKENS),
        "second dense layer": forward(0, TOKENS, *chain),
        "dense, keep 256": forward(0, 256),
        "256 listed, keep 128": forward(256, 128),
        "64 listed, keep 32": forward(64, 32),
        "16 listed, keep all": forward(16, 16),
        "backward, dense layer": backward(0, TOKENS),
        "backward, dense, keep 256": backward(0, 256),
        "backward, 256 listed, keep 128": backward(256, 128),
        "backward, 16 listed, keep all": backward(16, 16),
    }


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _layer(q: Tensor, k: Tensor, v: Tensor, candidates: int, topk: int) -> Layer:
    """One layer with `candidates` listed keys (0: all keys)."""
    bias = _meta(63 * 63, HEADS, dtype=torch.float32)
    if not candidates:
        region = _meta(WINDOWS, TOKENS, dtype=torch.uint8)
        return Layer(q, k, v, bias, region, None, None, CHANNELS**-0.5, 100.0, topk)
    index = _meta(WINDOWS, HEADS, TOKENS, candidates, dtype=torch.int16)
    logits = _meta(WINDOWS, HEADS, TOKENS, candidates, dtype=torch.float32)
    return Layer(q, k, v, bias, None, index, logits, CHANNELS**-0.5, 0.0, topk)


def _measure(job: Job) -> list[Resources]:
    """Compile what one situation launches for some targets."""
    from triton.backends.compiler import GPUTarget

    from ..kernels.triton.launch import recording

    situation, dtype, targets = job
    with recording() as launches:
        situations(getattr(torch, dtype))[situation]()
    rows = []
    for launch, target in itertools.product(launches, targets):
        compiled = launch.compile(GPUTarget("cuda", target, 32))
        registers, stack = _usage(compiled.asm["cubin"])
        shared, tf32 = int(compiled.metadata.shared), "tf32" in compiled.asm["ptx"]
        warps = launch.config.warps
        rows.append(Resources(situation, launch.name, dtype, target, warps, registers, stack, shared, tf32))
    return rows


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a thread, by the cuobjdump that Triton ships: it reads what its ptxas writes."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers:\n{text}")
    return int(found[1]), int(found[2])


def _worker() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)


def jobs_of(targets: Sequence[int], dtypes: Sequence[str], names: Iterable[str] | None = None) -> list[Job]:
    """Each situation (default: all) in each dtype, for all targets."""
    chosen = list(situations(torch.float16)) if names is None else list(names)
    return [(name, dtype, tuple(targets)) for name in chosen for dtype in dtypes]


def compile_jobs(jobs: Sequence[Job], processes: int = 2) -> list[Resources]:
    """Compile the kernels of these jobs, in processes of their own, and read what they take.

    A kernel that several situations launch with the same tile sizes comes from Triton's cache the second time.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_worker) as pool:
        return [row for rows in pool.map(_measure, jobs) for row in rows]


def render(rows: Iterable[Resources]) -> str:
    """A Markdown table, one line for each situation, kernel and dtype: registers, shared KiB and spills by target."""
    rows = list(rows)
    targets = sorted({row.target for row in rows})
    lines = [
        "| situation | kernel | dtype | warps | " + " | ".join(f"sm_{target}" for target in targets) + " |",
        "|---|---|---|---|" + "---|" * len(targets),
    ]

    def group(row: Resources) -> tuple[str, str, str]:
        return row.situation, row.kernel, row.dtype

    for (situation, kernel, dtype), members in itertools.groupby(rows, group):
        by_target = {row.target: row for row in members}
        warps = next(iter(by_target.values())).warps
        cells = [_cell(by_target.get(target)) for target in targets]
        lines.append(f"| {situation} | {kernel} | {dtype} | {warps} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        "Cells: registers a thread / shared KiB a program, and spilled bytes a thread where there are any."
    )
    return "\n".join(lines)


def _cell(row: Resources | None) -> str:
    if row is None:
        return ""
    spilled = f" **spills {row.spilled_bytes}**" if row.spilled_bytes else ""
    return f"{row.registers} / {row.shared_bytes / 1024:.1f}{spilled}"
