"""Plots of records. Pure functions: records in, a PNG out. Colour never carries meaning alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.roof import Roof
from ..record import Record, Status
from .tables import ordered_stages, step_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision; each backend has its marker and dash too.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LOOKS = {
    "dense": ("#555555", "s", "--"),
    "cpu": ("#0072B2", "o", "-"),
    "cuda": ("#009E73", "^", "-"),
    "triton": ("#D55E00", "D", "-"),
    "reference": ("#CC79A7", "v", ":"),
    "official": ("#E69F00", "P", "-."),
}
_HATCHES = ("", "//", "..", "xx", "--", "++", "oo", "\\\\", "**", "||", "O")


def _look(name: str, position: int) -> tuple[str, str, str]:
    return _LOOKS.get(name, (_PALETTE[position % len(_PALETTE)], "x", "-"))


def _figure(width: float = 8.0, height: float = 5.0) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _subtitle(records: Sequence[Record]) -> str:
    case = records[0].case
    sizes = ", ".join(f"{value} {name}" for name, value in case.shapes.items() if name != "candidates")
    return f"{sizes}; {case.dtype}, {case.mode}, {case.device}, {case.threads} threads"


def _layers(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.case.level == "layer" and record.status is Status.OK]


def _against_k(
    records: Sequence[Record],
    value: Callable[[Record], float | None],
    spread: Callable[[Record], tuple[float, float]] | None,
    label: str,
    title: str,
    floor: Callable[[Record], float] | None,
) -> Figure | None:
    """A curve for each backend over the kept K of sparse steps K -> K; selecting steps as hollow markers."""
    chosen = [record for record in _layers(records) if value(record) is not None]
    if not chosen:
        return None
    figure, axes = _figure()
    backends = list(dict.fromkeys(record.case.backend for record in chosen))
    for position, backend in enumerate(backends):
        colour, marker, dash = _look(backend, position)
        mine = [record for record in chosen if record.case.backend == backend]
        steady = sorted(
            (r for r in mine if r.case.shapes["candidates"] == r.case.k), key=lambda r: r.case.k or 0
        )
        selecting = [r for r in mine if r.case.shapes["candidates"] != r.case.k]
        if steady:
            errors: Any = None
            if spread is not None:
                errors = list(zip(*[spread(r) for r in steady], strict=True))
            axes.errorbar(
                [r.case.k or 0 for r in steady],
                [value(r) or 0.0 for r in steady],
                yerr=errors,
                color=colour,
                marker=marker,
                linestyle=dash,
                capsize=3,
                label=f"{backend}, K -> K",
            )
        if selecting:
            axes.plot(
                [r.case.k or 0 for r in selecting],
                [value(r) or 0.0 for r in selecting],
                marker=marker,
                linestyle="none",
                markerfacecolor="white",
                markeredgecolor=colour,
                label=f"{backend}, selecting (more candidates -> K)",
            )
    if floor is not None:
        by_k = {r.case.k or 0: r for r in chosen if r.case.shapes["candidates"] == r.case.k}
        if by_k:
            axes.plot(
                sorted(by_k),
                [floor(by_k[k]) for k in sorted(by_k)],
                color="#000000",
                linewidth=1,
                linestyle=(0, (1, 2)),
                label="roofline of this machine (measured)",
            )
    ticks = sorted({record.case.k or 0 for record in chosen})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("kept entries K")
    axes.set_ylabel(label)
    axes.set_title(f"{title}\n{_subtitle(chosen)}", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def latency_against_k(records: Sequence[Record], roof: Roof | None) -> Figure | None:
    """Latency of one layer against K for each backend, the interquartile range of its samples, and the roofline."""
    import numpy as np

    def value(record: Record) -> float | None:
        return None if record.derived is None else record.derived.median_s * 1e3

    def spread(record: Record) -> tuple[float, float]:
        assert record.timing is not None
        low, middle, high = np.percentile(np.array(record.timing.samples_s) * 1e3, [25, 50, 75])
        return float(middle - low), float(high - middle)

    def floor(record: Record) -> float:
        assert roof is not None
        return roof.floor_s(record.flops.kernel_flops or 0, record.flops.kernel_bytes or 0) * 1e3

    return _against_k(
        records,
        value,
        spread,
        "latency (ms)",
        "One attention layer: latency",
        None if roof is None else floor,
    )


def memory_against_k(records: Sequence[Record]) -> Figure | None:
    """Peak allocated memory of one layer against K for each backend."""

    def value(record: Record) -> float | None:
        peak = record.memory.peak_allocated_bytes
        return None if not peak else peak / 2**20

    return _against_k(records, value, None, "peak allocated (MiB)", "One attention layer: memory", None)


def model_stages(records: Sequence[Record]) -> Figure | None:
    """The model's stages as stacked bars, one for each schedule and backend."""
    chosen = [record for record in records if record.stages_s]
    if not chosen:
        return None
    figure, axes = _figure(9.0, 1.6 + 0.55 * len(chosen))
    names = [f"{step_text(record)}\n{record.case.backend}" for record in chosen]
    left = [0.0] * len(chosen)
    for position, stage in enumerate(ordered_stages(chosen)):
        widths = [(record.stages_s or {}).get(stage, 0.0) * 1e3 for record in chosen]
        axes.barh(
            names,
            widths,
            left=left,
            label=stage,
            color=_PALETTE[position % len(_PALETTE)],
            hatch=_HATCHES[position % len(_HATCHES)],
            edgecolor="white",
            linewidth=0.5,
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("time (ms)")
    case = chosen[0].case
    axes.set_title(
        f"Where the time goes: {case.preset}, {case.shapes['height']}x{case.shapes['width']} input, {case.mode}",
        loc="left",
        fontsize=10,
    )
    axes.legend(
        ncols=5,
        fontsize=8,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.35 / len(names) - 0.15),
    )
    return figure


def speedups(records: Sequence[Record]) -> Figure | None:
    """Speed-up of the whole model over the baseline for each schedule and backend, with its 95% interval."""
    chosen = [
        record
        for record in records
        if record.case.level == "model" and record.derived is not None and record.derived.ratio is not None
    ]
    if not chosen:
        return None
    figure, axes = _figure(8.0, 1.6 + 0.5 * len(chosen))
    for position, record in enumerate(chosen):
        derived = record.derived
        assert derived is not None
        assert derived.ratio is not None
        speedup = 1 / derived.ratio
        colour = _look(record.case.backend, position)[0]
        error: Any = None
        if derived.ratio_low is not None and derived.ratio_high is not None:
            error = [[speedup - 1 / derived.ratio_high], [1 / derived.ratio_low - speedup]]
        name = f"{step_text(record)}\n{record.case.backend}"
        axes.barh([name], [speedup], xerr=error, color=colour, capsize=4, height=0.6)
        axes.annotate(
            f" {speedup:.2f}x {derived.verdict.value if derived.verdict else ''}",
            (speedup, position),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.axvline(1.0, color="#555555", linestyle="--", linewidth=1)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.25)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than masked dense attention (dashed), whole model")
    case = chosen[0].case
    axes.set_title(
        f"Speed-up: {case.preset}, {case.shapes['height']}x{case.shapes['width']} input, {case.mode}, "
        f"{case.device}, {case.threads} threads",
        loc="left",
        fontsize=10,
    )
    return figure


def write_plots(records: Sequence[Record], folder: Path, roof: Roof | None) -> list[Path]:
    """Write every plot that the records allow; returns the files."""
    made = {
        "latency_vs_k.png": latency_against_k(records, roof),
        "memory_vs_k.png": memory_against_k(records),
        "stages.png": model_stages(records),
        "speedup.png": speedups(records),
    }
    written = []
    for name, figure in made.items():
        if figure is not None:
            figure.savefig(folder / name)
            written.append(folder / name)
    return written
