"""Quality against latency and memory: tables and the figure. Pure functions of quality rows and records."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pandas as pd

from ..apps.quality.evaluate import QualityRow, Variant, read_rows
from ..common.drafts import draft
from ..common.terminal import Console, Table
from ..common.text import in_figure
from ..harness.record import Record, RunFolder, shown
from .plots import _look
from .tables import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Mean:
    """The mean over the images of a data set, and how many there were; those without a result are `missing`."""

    psnr_db: float
    ssim: float
    images: int
    missing: int


def means(rows: Sequence[QualityRow]) -> dict[Variant, dict[str, Mean]]:
    """Variant -> data set -> mean, in the order of the rows.

    Only images that every variant restored are averaged: means over different images cannot be compared.
    """
    failed = {(row.dataset, row.image) for row in rows if row.reason}
    found: dict[Variant, dict[str, Mean]] = {}
    for variant in dict.fromkeys(row.variant for row in rows):
        for dataset in dict.fromkeys(row.dataset for row in rows):
            own = [row for row in rows if (row.variant, row.dataset) == (variant, dataset)]
            good = [row for row in own if (row.dataset, row.image) not in failed]
            psnr = fmean(row.psnr_db for row in good) if good else math.nan
            ssim = fmean(row.ssim for row in good) if good else math.nan
            found.setdefault(variant, {})[dataset] = Mean(psnr, ssim, len(good), len(own) - len(good))
    return found


def by_variant(records: Iterable[Record]) -> dict[Variant, Record]:
    """The record of each variant."""
    return {Variant(str(r.case.options["sched"]), r.case.backend): r for r in records}


def means_table(rows: Sequence[QualityRow], records: Sequence[Record]) -> Table:
    """One line a variant: PSNR and SSIM of each data set, latency and memory."""
    table = Table(title="Quality on Y, borders cropped (PSNR in dB / SSIM)", box=None)
    table.add_column("schedule")
    table.add_column("backend")
    averages = means(rows)
    for dataset, mean in next(iter(averages.values()), {}).items():
        without = f", {mean.missing} without" if mean.missing else ""
        table.add_column(f"{dataset} ({mean.images}{without})", justify="right")
    measured = by_variant(records)
    if measured:
        table.add_column("latency", justify="right")
        table.add_column("memory", justify="right")
    for variant, sets in averages.items():
        cells = [f"{mean.psnr_db:.2f} / {mean.ssim:.4f}" if mean.images else "-" for mean in sets.values()]
        if measured:
            cells += _cost(measured.get(variant))
        table.add_row(variant.schedule, variant.backend, *cells)
    return table


def _cost(record: Record | None) -> list[str]:
    if record is None:
        return ["", ""]
    if record.derived is None:
        return [record.status.value, ""]
    peak = record.memory.peak_allocated_bytes
    return [f"{record.derived.median_s * 1e3:.3g} ms", "" if peak is None else f"{peak / 2**20:.1f} MiB"]


def images_table(rows: Sequence[QualityRow]) -> Table:
    """One line an image: PSNR and SSIM of each variant."""
    table = Table(title="Images (PSNR in dB / SSIM)", box=None)
    variants = list(dict.fromkeys(row.variant for row in rows))
    for name in ("set", "image", "input"):
        table.add_column(name)
    for variant in variants:
        table.add_column(variant.name, justify="right")
    cells = {(row.dataset, row.image, row.variant): row for row in rows}
    for dataset, image in dict.fromkeys((row.dataset, row.image) for row in rows):
        own = [cells[dataset, image, variant] for variant in variants]
        texts = ["-" if row.reason else f"{row.psnr_db:.2f} / {row.ssim:.4f}" for row in own]
        size = max((f"{row.low_width}x{row.low_height}" for row in own if not row.reason), default="")
        table.add_row(dataset, image, size, *texts)
    return table


def write_quality_csv(rows: Sequence[QualityRow], path: Path) -> None:
    """All rows as a table."""
    write_csv(pd.DataFrame([shown(asdict(row)) for row in rows]), path)


def write_quality_plot(rows: Sequence[QualityRow], records: Sequence[Record], path: Path) -> Path | None:
    """Mean PSNR against latency and against peak memory, a row of axes a data set; None where nothing was timed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = {variant: record for variant, record in by_variant(records).items() if record.derived}
    averages = means(rows)
    datasets = [name for name, mean in next(iter(averages.values()), {}).items() if mean.images]
    if not measured or not datasets:
        return None
    figure = Figure(figsize=(10.5, 0.8 + 3.4 * len(datasets)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(datasets), 2, squeeze=False, sharey="row")
    for dataset, (left, right) in zip(datasets, all_axes, strict=True):
        quality = {variant: averages[variant][dataset].psnr_db for variant in averages}
        _panel(left, quality, measured, _latency_ms, "latency [ms], median and MAD")
        _panel(right, quality, measured, _memory_mib, "peak memory [MiB]")
        left.set_ylabel(f"{in_figure(dataset)}: mean PSNR on Y [dB]")
        bicubic = quality.get(Variant.bicubic())
        if bicubic is not None and math.isfinite(bicubic):
            left.set_title(f"bicubic: {bicubic:.2f} dB", loc="left", fontsize=9, color="#555555")
    case = next(iter(measured.values())).case
    size = f"{case.shapes['width']}x{case.shapes['height']}"
    figure.suptitle(
        f"{in_figure(case.options['weights'])}: quality against cost of a {size} input ({case.dtype}, {case.device}, "
        f"{case.threads} threads)",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    with draft(path) as made:
        figure.savefig(made)
    return path


def _latency_ms(record: Record) -> tuple[float, float]:
    assert record.derived is not None
    return record.derived.median_s * 1e3, record.derived.mad_s * 1e3


def _memory_mib(record: Record) -> tuple[float, float]:
    return (record.memory.peak_allocated_bytes or 0) / 2**20, 0.0


def _panel(
    axes: Axes,
    quality: dict[Variant, float],
    measured: dict[Variant, Record],
    cost: Callable[[Record], tuple[float, float]],
    label: str,
) -> None:
    """One curve a backend over its schedules, each point with the schedule's text beside it."""
    axes.grid(visible=True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    backends = list(dict.fromkeys(variant.backend for variant in measured))
    for position, backend in enumerate(backends):
        colour, marker, dash = _look(backend, position)
        points = sorted(
            (*cost(record), quality[variant], variant.schedule)
            for variant, record in measured.items()
            if variant.backend == backend and math.isfinite(quality.get(variant, math.nan))
        )
        axes.errorbar(
            [point[0] for point in points],
            [point[2] for point in points],
            xerr=[point[1] for point in points],
            color=colour,
            marker=marker,
            linestyle=dash,
            capsize=2,
            label=in_figure(backend),
        )
        for x, _, y, schedule in points:
            axes.annotate(
                in_figure(schedule),
                (x, y),
                xytext=(6, -11),
                textcoords="offset points",
                fontsize=7.5,
                color="#333333",
            )
    axes.set_xlabel(label)
    axes.margins(x=0.18, y=0.15)
    axes.ticklabel_format(axis="y", useOffset=False)
    if len(backends) > 1:
        axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Draw a recorded evaluation again: `python -m pft_bench.report.quality FOLDER`; nothing is measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="what `pft-bench evaluate` wrote")
    folder = parser.parse_args().folder
    rows, records = read_rows(folder / "quality.jsonl"), RunFolder.read(folder).records
    write_quality_csv(rows, folder / "quality.csv")
    Console().print(f"written: {write_quality_plot(rows, records, folder / 'quality_vs_latency.png')}")


if __name__ == "__main__":
    main()
