"""`pft-bench flops`: parameters and multiply-accumulates of the published models, as their authors count them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..model import PRESETS, PUBLISHED_LR, parameter_count, published_macs


def flops() -> None:
    """Print parameters and published GMACs of the six presets at the published resolutions."""
    table = Table(title="PFT as published", title_justify="left", header_style="bold")
    for name in ("preset", "low-resolution input", "output"):
        table.add_column(name)
    table.add_column("parameters", justify="right")
    table.add_column("GMAC", justify="right")
    for name, config in PRESETS.items():
        width, height = PUBLISHED_LR[config.upscale]
        table.add_row(
            name,
            f"{width}x{height}",
            f"{width * config.upscale}x{height * config.upscale}",
            f"{parameter_count(config):,}",
            f"{published_macs(config, height, width) / 1e9:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "GMAC is the authors' convention (multiply-accumulates; no softmax, top-k, gathers or bias; windows without\n"
        "padding). What a run really computes is counted apart: `counted_flops` in its records."
    )
