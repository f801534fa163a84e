"""`pft-bench doctor`: what can run here, and what to do about the rest."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..backends import backends
from ..measure.environment import environment


def doctor() -> None:
    """Print this machine, and each backend: available, or why not and what to do."""
    console = Console()
    found = environment()
    cpu, gpu, libraries = found.get("cpu") or {}, found.get("gpu"), found["libraries"]
    console.print(f"pft-bench {__version__}, Python {found['python']}, {found['system']}")
    console.print(
        f"processor: {cpu.get('model', 'unknown')}, {cpu.get('cores_usable') or '?'} cores; GPU: {gpu or 'none'}"
    )
    console.print(
        "libraries: " + ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    )
    table = Table(title="Backends", title_justify="left", header_style="bold")
    for name in ("backend", "available", "what it is, or why not and what to do"):
        table.add_column(name)
    for row in backends():
        table.add_row(row.name, "[green]yes[/]" if row.available else "[red]no[/]", row.reason)
    console.print(table)
