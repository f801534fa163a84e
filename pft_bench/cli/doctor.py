"""`pft-bench doctor`: what can run here, and what to do about the rest."""

from __future__ import annotations

from .. import __version__
from ..backends import backends
from ..measure.environment import environment
from ..terminal import Console, Table, line


def doctor() -> None:
    """Print this machine, and each backend: available, or why not and what to do."""
    console = Console.wide(120)
    found = environment()
    cpu, gpu, libraries = found.get("cpu") or {}, found.get("gpu"), found["libraries"]
    console.print(f"pft-bench {__version__}, Python {found['python']}, {found['system']}")
    console.print(
        f"processor: {cpu.get('model', 'unknown')}, {cpu.get('cores_usable') or '?'} cores; GPU: {gpu or 'none'}"
    )
    console.print(
        "libraries: " + ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    )
    table = Table(title="Backends")
    for name in ("backend", "available", "what it is, or why not and what to do"):
        table.add_column(name)
    for row in backends():
        table.add_row(row.name, line(("yes", "green") if row.available else ("no", "red")), row.reason)
    console.print(table)
