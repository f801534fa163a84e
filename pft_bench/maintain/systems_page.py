"""The page of the compared systems, reports/systems.md, and its figure, from the latest committed records.

Sizes are counted anew; times come from the folders `*_systems_64x64`, `*_systems_128x128` and `*_mechanisms` of
reports/data, whichever are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..apps.systems import PFT_PAPER, SYSTEMS, PeersMissing, System, size_of
from ..common.drafts import draft
from ..harness.record import Record, RunFolder
from ..report import read_folder, words
from ..report.draw import draw
from ..report.folder import machine_text
from ..report.mechanisms import MechanismRow, mechanism_figure, mechanism_rows
from ..report.tables import bytes_text, speedup_text, step_text

HALVINGS = 4


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines of a table: the first column left, the others right."""
    made = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return [*made, *(f"| {' | '.join(row)} |" for row in rows), ""]


def sizes() -> list[str]:
    """Published numbers and ours, and why they differ."""
    rows = []
    for system in SYSTEMS:
        said, here = system.published, ["-"] * 4
        try:
            size = size_of(system) if system.runs else None
        except PeersMissing as error:
            raise SystemExit(str(error)) from error
        if size is not None:
            here = [f"{size.parameters:,}", f"{size.macs / 1e12:.3f} T", size.difference(system)]
            here.append(f"{size.counted / 1e12:.3f} T")
        psnr = " / ".join("-" if value is None else f"{value:.2f}" for value in said.psnr_db) or "-"
        rows.append(
            [
                system.name,
                "-" if said.parameters_m is None else f"{said.parameters_m:g} M",
                here[0],
                "-" if said.macs_t is None else f"{said.macs_t:.2f} T",
                *here[1:],
                psnr,
            ]
        )
    head = (
        "system",
        "params, published",
        "here",
        "MACs, published",
        "here",
        "difference",
        "counted",
        "PSNR, dB",
    )
    return [
        "## Sizes",
        "",
        f"For an output of 1280x720 at x2. Published: {PFT_PAPER}, unless another source is named below; -",
        "where none was found. MACs here: by the authors' convention where it is known (ATD, PFT, IPG), else counted.",
        "Counted: matrix products and convolutions that PyTorch counts in one pass, padding and repeated products",
        "included. PSNR: published, Set5 / Urban100 / Manga109.",
        "",
        *table(head, rows),
        *(f"- **{system.name}**{_source(system)}: {system.note}" for system in SYSTEMS if system.note),
        "",
    ]


def _source(system: System) -> str:
    return "" if system.published.source == PFT_PAPER else f" ({system.published.source})"


def times(folder: RunFolder, link: str) -> list[str]:
    """Latency, ratio and memory of the whole networks of one run."""
    records = folder.records
    shapes = records[0].case.shapes
    rows = [
        [
            step_text(record),
            record.case.backend,
            "-" if record.derived is None else words.seconds(record.derived.median_s),
            speedup_text(record),
            bytes_text(record.memory.peak_allocated_bytes),
            "-" if not record.flops.counted_flops else f"{record.flops.counted_flops / 2e12:.3g} T",
        ]
        for record in records
    ]
    head = ("system", "code", "latency", "times as fast as PFT [95%]", "memory", "counted MACs")
    return [
        f"## Whole networks, {shapes['width']}x{shapes['height']} input",
        "",
        f"{records[0].case.threads} threads, {_machine(folder)}; in the same rounds ([records]({link})).",
        "",
        *table(head, rows),
    ]


def _machine(folder: RunFolder) -> str:
    return machine_text(folder.environments.get(folder.records[0].environment, {}))


def mechanisms(folder: RunFolder, link: str) -> list[str]:
    """Deciding and using at equal numbers of kept tokens, and what that says of the paper's claims."""
    rows = mechanism_rows(folder.records)
    shapes = folder.records[0].case.shapes
    cells = [
        [
            row.name,
            str(row.k),
            *map(words.seconds, (row.decide_s, row.use_s, row.both_s)),
            f"{row.both_s / row.dense_s:.0%}",
        ]
        for row in rows
    ]
    return [
        "## The attention alone",
        "",
        f"{shapes['windows']} windows of {shapes['tokens']} tokens, {shapes['heads']} heads, "
        f"head_dim {shapes['head_dim']}, {_machine(folder)} ([records]({link})).",
        "",
        "![Time to decide and to use against kept tokens](mechanisms.png)",
        "",
        *table(("mechanism", "kept", "decide", "use", "both", "of dense"), cells),
        *claims(rows, folder.records, shapes["tokens"]),
    ]


def claims(rows: Sequence[MechanismRow], records: Sequence[Record], tokens: int) -> list[str]:
    """What the paper says of choosing before computing, beside what was measured."""
    found = {(row.name, row.k): row for row in rows}
    made = []
    for k in sorted({row.k for row in rows if row.name == "compute-then-select"}):
        cells = [str(k)]
        for name in ("progressive", "progressive, halving"):
            if (name, k) not in found:
                cells += ["-", "-"]
                continue
            ratio = found["compute-then-select", k].both_s / found[name, k].both_s
            won, rounds = rounds_won(records, name, k)
            cells += [words.times(ratio), f"{won} of {rounds}"]
        made.append(cells)
    head = ("kept", "K of K: times as fast", "in rounds", "K of 2K: times as fast", "in rounds")
    kept = tokens >> HALVINGS
    logits = {
        int(record.case.options["logits"] or 0)
        for record in records
        if (record.case.backend, record.case.op, record.case.k) == ("progressive", "decide", kept)
    }
    share = ", ".join(f"{count} of {tokens} logits a row, {count / tokens:.2%}" for count in sorted(logits))
    last = found.get(("progressive", kept))
    time = "" if last is None else f"; it takes {last.both_s / last.dense_s:.1%} of dense attention's time"
    return [
        "**Progressive selection against compute-then-select**, deciding and using together, at every K measured:",
        "",
        *table(head, made),
        f"**After four halvings** a layer computes {share}{time}.",
        "",
    ]


def rounds_won(records: Sequence[Record], name: str, k: int) -> tuple[int, int]:
    """In how many rounds `name` was faster than compute-then-select at the same K, and of how many."""

    def sums(mechanism: str) -> list[float]:
        parts = [
            record.timing.samples_s
            for record in records
            if (record.case.backend, record.case.k) == (mechanism, k) and record.timing is not None
        ]
        return [sum(round_) for round_ in zip(*parts, strict=False)]

    pairs = list(zip(sums(name), sums("compute-then-select"), strict=False))
    return sum(one < other for one, other in pairs), len(pairs)


def latest(data: Path, name: str) -> Path | None:
    """The last of the folders `<date>_<name>`."""
    return max(data.glob(f"*_{name}"), default=None)


def page(data: Path) -> str:
    """The page from the latest folders under `data`."""
    lines = [
        "# The compared systems",
        "",
        "Made by `make systems-report` from the records; [docs/systems.md](../docs/systems.md) says what is compared.",
        "",
        *sizes(),
    ]
    for name in ("systems_64x64", "systems_128x128", "mechanisms"):
        folder = latest(data, name)
        if folder is not None:
            told = mechanisms if name == "mechanisms" else times
            lines += told(read_folder(folder), f"data/{folder.name}")
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), help="folder of the page and of data/"
    )
    parser.add_argument("--figure", action="store_true", help="draw the figure alone")
    given = parser.parse_args(arguments)
    reports = given.reports
    if not given.figure:
        with draft(reports / "systems.md") as made:
            made.write_text(page(reports / "data"), encoding="utf-8")
    folder = latest(reports / "data", "mechanisms")
    alone = None if folder is None else read_folder(folder)
    figure = None if alone is None else mechanism_figure(alone.records)
    if alone is not None and figure is not None:
        draw(figure, alone.backends).png(reports)


if __name__ == "__main__":
    main()
