"""Counts and predictions as tables: rows of text for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .counted import CountedLaunch, Site, places
from .emulate import Work
from .model import Prediction, Total
from .study import LaunchRow

COUNT_HEAD = (
    "step",
    "dtype",
    "kernel",
    "blocks/SM",
    "waves",
    "requests k",
    "doubtful",
    "wavefronts k",
    "without conflicts k",
    "sectors/read (ideal)",
    "sectors/write (ideal)",
    "mma k",
    "shuffles k",
    "barriers k",
)
TIME_HEAD = (
    "step",
    "dtype",
    "kernel",
    *("shared", "issue", "ALU", "FMA", "MUFU", "mma", "L2", "DRAM"),
    "predicted ms",
    "bound by",
)
TOTAL_HEAD = ("step", "dtype", "predicted ms", "bound by", "floor ms", "times the floor")
SITE_HEAD = ("share", "requests", "lanes", "wavefronts or sectors/request", "best", "what", "where")
_PIPES = ("shared", "issue", "alu", "fma", "mufu", "mma", "l2", "dram")
PIPE_NAMES = {"alu": "ALU", "fma": "FMA", "mufu": "MUFU", "l2": "L2", "dram": "DRAM"}


def _pipe(name: str) -> str:
    return PIPE_NAMES.get(name, name)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _range(low: float, high: float) -> str:
    return f"{_ms(low)} to {_ms(high)}"


def _per_request(n: dict[str, int], way: str) -> str:
    requests = n.get(f"{way}_requests", 0)
    if not requests:
        return "-"
    return f"{n[f'{way}_sectors'] / requests:.1f} ({n[f'{way}_sectors_ideal'] / requests:.1f})"


def count_cells(row: LaunchRow) -> tuple[str, ...]:
    """Counts of one window-head, in the order of COUNT_HEAD."""
    n, scale = row.launch.totals(), row.launch.blocks / row.launch.blocks_run / 1e3

    def thousands(name: str) -> str:
        return f"{n.get(name, 0) * scale:.1f}"

    p = row.prediction
    return (
        row.work.title,
        row.work.dtype,
        row.launch.kernel,
        f"{p.blocks_per_multiprocessor} ({p.warps_per_multiprocessor} warps)",
        f"{p.waves:.1f}",
        thousands("requests"),
        f"{row.launch.doubtful_share:.1%}",
        thousands("wavefronts"),
        thousands("conflict_free"),
        _per_request(n, "read"),
        _per_request(n, "write"),
        thousands("mma"),
        thousands("shuffle"),
        thousands("barrier"),
    )


def time_cells(row: LaunchRow) -> tuple[str, ...]:
    """Predicted milliseconds of all window-heads, in the order of TIME_HEAD. `>` marks a lower bound."""
    p = row.prediction
    known = p.instructions is not None
    cells = []
    for name in _PIPES:
        low = not known and name in ("issue", "alu", "fma")
        cells.append("?" if low and name == "alu" else ("> " if low else "") + _ms(p.pipes[name]))
    return (
        row.work.title,
        row.work.dtype,
        row.launch.kernel,
        *cells,
        _range(p.low, p.high),
        _pipe(p.bound),
    )


def total_cells(title: str, dtype: str, total: Total) -> tuple[str, ...]:
    """One work, or a whole attention core, in the order of TOTAL_HEAD."""
    times = f"{total.low / total.floor:.1f} to {total.high / total.floor:.1f}" if total.floor else "-"
    return (
        title,
        dtype,
        _range(total.low, total.high),
        _pipe(total.bound),
        _ms(total.floor) if total.floor else "-",
        times,
    )


def site_rows(launch: CountedLaunch, module: Path, most: int = 12) -> list[tuple[str, ...]]:
    """The places in the source that keep shared memory and L1 busy longest, in the order of SITE_HEAD."""
    whole = sum(site.cost for site in launch.sites) or 1
    where = places(module, [site.offset for site in launch.sites])
    joined: dict[tuple[object, ...], Site] = {}
    for site in launch.sites:  # a line that the compiler has doubled is one place
        key = (where.get(site.offset, site.offset), site.kind, site.space, site.bytes)
        joined[key] = site if key not in joined else joined[key].plus(site)
    chosen = sorted(joined.values(), key=lambda s: -max(s.cost, s.sectors / 32))[:most]
    return [_site_cells(site, whole, where.get(site.offset, ())) for site in chosen]


def _site_cells(site: Site, whole: int, where: Sequence[str]) -> tuple[str, ...]:
    shared = site.space == "shared"
    now, best = (site.wavefronts, site.conflict_free) if shared else (site.sectors, site.sectors_ideal)
    return (
        f"{site.cost / whole:.1%}",
        f"{site.requests}",
        f"{site.lanes / site.requests:.1f}",
        f"{now / site.requests:.2f}",
        f"{best / site.requests:.2f}",
        f"{site.space} {site.kind} {site.bytes} B",
        " < ".join(where) or f"code +{site.offset:#x} (no addr2line to name the line)",
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


__all__ = [
    "COUNT_HEAD",
    "SITE_HEAD",
    "TIME_HEAD",
    "TOTAL_HEAD",
    "Prediction",
    "Work",
    "count_cells",
    "markdown",
    "site_rows",
    "time_cells",
    "total_cells",
]
