"""`pft-bench doctor`: what can run here, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import __version__
from ..common.terminal import Console, Table, line
from .work import at_work

if at_work(__name__):
    from ..backends import backends, rungs
    from ..common.text import show_bytes
    from ..harness.measure.environment import environment
    from ..harness.measure.roof import sixteen_bit_gains


SIXTEEN_BIT_FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
"""Flags of a processor that computes in 16 bits."""
WORTH = 1.2
"""From here on a dtype is called faster."""


def doctor() -> None:
    """Print this machine, and each backend: available, or why not and what to do."""
    console = Console.wide(120)
    found = environment()
    cpu, gpu, libraries = found.get("cpu") or {}, found.get("gpu"), found["libraries"]
    console.print(f"pft-bench {__version__}, Python {found['python']}, {found['system']}")
    console.print(
        f"processor: {cpu.get('model', 'unknown')}, {cpu.get('cores_usable') or '?'} cores; GPU: {gpu or 'none'}"
    )
    console.print(_allowed(found))
    console.print(_sixteen_bits(cpu.get("isa") or ()))
    console.print(_build(found), markup=False)
    console.print(
        "libraries: " + ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    )
    table = Table("backend", "available", "what it is, or why not and what to do", title="Backends")
    for row in backends():
        table.add_row(row.name, line(("yes", "green") if row.available else ("no", "red")), row.reason)
    console.print(table)
    for row in backends():
        if names := rungs(row.name):
            console.print(f"Rungs of {row.name}, for --backend: {', '.join(names)}")


def _allowed(found: Mapping[str, Any]) -> str:
    """What a container leaves of the machine, and how many threads a command takes."""
    quota, memory = found["limits"]["cpu_quota"], found["limits"]["memory_bytes"]
    limits = [
        "CPU quota: " + (f"{quota:g} cores" if quota else "none"),
        "memory limit: " + (show_bytes(memory) if memory else "none"),
        f"threads: {found['threads']['torch']}",
    ]
    if found["flushes_denormals"]:
        limits.append("denormal numbers are off in this process, which the checks do not expect")
    return "; ".join(limits)


def _sixteen_bits(isa: Iterable[str]) -> str:
    """What 16-bit models gain on this processor: measured, for having the instructions does not mean being faster."""
    gains = sixteen_bit_gains()
    told = ", ".join(f"{name} {gain:.2f}x" for name, gain in gains.items())
    own = ", ".join(flag for flag in isa if flag in SIXTEEN_BIT_FLAGS) or "none for 16 bits"
    faster = [name for name, gain in gains.items() if gain >= WORTH]
    advice = f"faster: {', '.join(faster)}" if faster else "none is faster here: they save memory, not time"
    return (
        f"speed of PyTorch's products in 16 bits, measured now, float32 being 1: {told} "
        f"(instructions: {own}); {advice}"
    )


def _build(found: Mapping[str, Any]) -> str:
    """Compiler of the CPU kernels, and the flags that came from outside: ours follow and overrule them."""
    build = (found["builds"].get("pft_bench._cpu") or {}).get("build_info") or {}
    flags = [build[name] for name in ("flags_user", "flags_user_link") if build.get(name)]
    return (
        f"build: {build.get('compiler', 'unknown compiler')}, {build.get('build_type', 'unknown')}; "
        f"flags from outside: {' '.join(flags) or 'none'}"
    )
