"""Quality against latency and memory: tables and the figure. Pure functions of quality rows and records."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from ..apps.quality.evaluate import QUALITY, QualityRow, Variant, read_rows
from ..common.terminal import Console, Table
from ..common.text import file_name
from ..harness.record import Record, RunFolder, shown
from . import words
from .draw import draw
from .series import Figure, Point, Series
from .tables import bytes_text, seconds_text, speedup_text, write_csv

QUALITY_TABLE = "quality.csv"
"""The rows of an evaluation as a table, beside them."""


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
    """One line a variant: PSNR and SSIM of each data set; latency, speed-up over the baseline row, memory."""
    averages, measured = means(rows), by_variant(records)
    names = [
        f"{dataset} ({mean.images}{f', {mean.missing} without' if mean.missing else ''})"
        for dataset, mean in next(iter(averages.values()), {}).items()
    ]
    if measured:
        names += ["latency", "speed-up [95%]", "memory"]
    title = "Quality on Y, borders cropped (PSNR in dB / SSIM)"
    table = Table("schedule", "backend", numbers=names, title=title, box=None)
    if measured:
        bases = dict.fromkeys(r.timing.baseline.name for r in records if r.timing and r.timing.baseline)
        table.caption = f"speed-up over {' or '.join(bases)}, in the same rounds" if bases else None
    for variant, sets in averages.items():
        cells = [f"{mean.psnr_db:.2f} / {mean.ssim:.4f}" if mean.images else "-" for mean in sets.values()]
        if measured:
            cells += _cost(measured.get(variant))
        table.add_row(variant.schedule, variant.backend, *cells)
    return table


def _cost(record: Record | None) -> list[str]:
    if record is None:
        return ["", "", ""]
    if record.derived is None:
        return [record.status.value, "", ""]
    peak = record.memory.peak_allocated_bytes
    return [
        seconds_text(record.derived.median_s),
        speedup_text(record),
        "" if peak is None else bytes_text(peak),
    ]


def images_table(rows: Sequence[QualityRow]) -> Table:
    """One line an image: PSNR and SSIM of each variant."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    names = [variant.name for variant in variants]
    table = Table("set", "image", "input", numbers=names, title="Images (PSNR in dB / SSIM)", box=None)
    cells = {(row.dataset, row.image, row.variant): row for row in rows}
    for dataset, image in dict.fromkeys((row.dataset, row.image) for row in rows):
        own = [cells[dataset, image, variant] for variant in variants]
        texts = ["-" if row.reason else f"{row.psnr_db:.2f} / {row.ssim:.4f}" for row in own]
        size = max((f"{row.low_width}x{row.low_height}" for row in own if not row.reason), default="")
        table.add_row(dataset, image, size, *texts)
    return table


def quality_frame(rows: Sequence[QualityRow]) -> pd.DataFrame:
    """All rows as a table."""
    return pd.DataFrame([shown(asdict(row)) for row in rows])


def write_quality_csv(rows: Sequence[QualityRow], folder: Path) -> None:
    """All rows as a CSV file in the folder."""
    write_csv(quality_frame(rows), folder / QUALITY_TABLE)


def quality_figures(rows: Sequence[QualityRow], records: Sequence[Record]) -> list[Figure]:
    """Mean PSNR of each data set against latency and against peak memory; none where nothing was timed."""
    measured = {variant: record for variant, record in by_variant(records).items() if record.derived}
    averages = means(rows)
    datasets = [name for name, mean in next(iter(averages.values()), {}).items() if mean.images]
    found: list[Figure | None] = []
    for dataset in datasets if measured else []:
        quality = {variant: averages[variant][dataset].psnr_db for variant in averages}
        key = f"_{file_name(dataset)}" if len(datasets) > 1 else ""
        found += [
            _quality_figure(f"quality_vs_{cost}{key}", dataset, quality, measured, cost)
            for cost in ("latency", "memory")
        ]
    return [figure for figure in found if figure is not None]


def _quality_figure(
    key: str, dataset: str, quality: dict[Variant, float], measured: dict[Variant, Record], cost: str
) -> Figure | None:
    found: dict[str, list[Point]] = {}
    for variant, record in measured.items():
        psnr, peak = quality.get(variant, math.nan), record.memory.peak_allocated_bytes
        assert record.derived is not None
        middle, spread = record.derived.median_s, record.derived.mad_s
        if cost == "memory":
            middle, spread = peak or 0, 0.0
        if math.isfinite(psnr) and middle:
            ends = (middle - spread, middle + spread) if spread else None
            point = Point(record, middle, psnr, x_bar=ends, note=variant.schedule)
            found.setdefault(variant.backend, []).append(point)
    if not found:
        return None
    record = next(iter(measured.values()))
    size = f"{record.case.shapes['width']}x{record.case.shapes['height']} input"
    bicubic = quality.get(Variant.bicubic(), math.nan)
    setting = f"{size}, {record.case.dtype}, {record.case.device}, {record.case.threads} threads"
    return Figure(
        key,
        "quality",
        f"{record.case.options['weights']}: quality against {cost}",
        "",
        "latency, median and MAD" if cost == "latency" else "peak memory",
        f"{dataset}: mean PSNR on Y",
        tuple(Series(name, tuple(sorted(points, key=lambda p: p.x))) for name, points in found.items()),
        words.seconds if cost == "latency" else words.size,
        lambda value: f"{value:.2f} dB",
        setting=f"{setting}; bicubic: {bicubic:.2f} dB" if math.isfinite(bicubic) else setting,
        x_log=False,
        y_log=False,
    )


@dataclass(frozen=True)
class QualityTable:
    """PSNR in dB and SSIM of each variant (columns), as means of each data set and for each image of it (rows)."""

    variants: tuple[str, ...]
    rows: tuple[QualityLine, ...]


@dataclass(frozen=True)
class QualityLine:
    """One row: what it is of, and (PSNR, SSIM) of each variant, None where it has no result."""

    name: str
    is_mean: bool
    values: tuple[tuple[float, float] | None, ...]


def quality_table(rows: Sequence[QualityRow]) -> QualityTable:
    """The table that the reports show; each data set begins with its means."""
    averages = means(rows)
    cells = {(row.dataset, row.image, row.variant): row for row in rows if not row.reason}
    lines = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        sets = [sets[dataset] for sets in averages.values()]
        without = f", {max(mean.missing for mean in sets)} without a result"
        lines.append(
            QualityLine(
                f"{dataset}, mean of {sets[0].images}{without if any(mean.missing for mean in sets) else ''}",
                True,
                tuple((mean.psnr_db, mean.ssim) if mean.images else None for mean in sets),
            )
        )
        for image in dict.fromkeys(row.image for row in rows if row.dataset == dataset):
            found = [cells.get((dataset, image, variant)) for variant in averages]
            values = tuple(None if row is None else (row.psnr_db, row.ssim) for row in found)
            lines.append(QualityLine(image, False, values))
    return QualityTable(tuple(variant.name for variant in averages), tuple(lines))


def write_quality_plots(rows: Sequence[QualityRow], records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw them into a folder; returns the files."""
    return [draw(figure, []).png(folder) for figure in quality_figures(rows, records)]


def main() -> None:
    """Draw a recorded evaluation again: `python -m pft_bench.report.quality FOLDER`; nothing is measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="what `pft-bench evaluate` wrote")
    folder = parser.parse_args().folder
    rows, records = read_rows(folder / QUALITY), RunFolder.read(folder).records
    write_quality_csv(rows, folder)
    for path in write_quality_plots(rows, records, folder):
        Console().print(f"written: {path}")


if __name__ == "__main__":
    main()
