"""Plots of records. Pure functions: records in, a PNG out. Colour never carries meaning alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.drafts import draft
from ..common.text import in_figure
from ..harness.measure.roof import Roof
from ..harness.record import Record
from .series import Figure, Point, Quality, figures, pareto_front, setting_text, unknown
from .svg import ticks
from .tables import contender_text, ordered_stages, step_text
from .words import tick

if TYPE_CHECKING:
    import matplotlib.figure as mpl
    from matplotlib.axes import Axes

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
# What is no backend of these (a plug-in, a composition, a layer) takes the next of each.
_MARKERS, _DASHES = "x*h<>pd", ("-", "--", "-.", ":")
_HATCHES = ("", "//", "..", "xx", "--", "++", "oo", "\\\\", "**", "||", "O")


def _look(name: str, position: int) -> tuple[str, str, str]:
    colour, marker, dash = (items[position % len(items)] for items in (_PALETTE, _MARKERS, _DASHES))
    return _LOOKS.get(name, (colour, marker, dash))


def _figure(width: float = 8.0, height: float = 5.0) -> tuple[mpl.Figure, Axes]:
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


def picture(figure: Figure) -> mpl.Figure:
    """A figure of the report (`series.figures`) as a plot: both axes logarithmic, every series named."""
    made, axes = _figure()
    for position, series in enumerate(figure.series):
        colour, marker, dash = _look(series.name, position)
        for hollow in (False, True):
            points = [point for point in series.points if point.hollow is hollow]
            if points:
                joined = figure.kind == "curves" and not hollow
                axes.errorbar(
                    [point.x for point in points],
                    [point.y for point in points],
                    yerr=_quartile_bars(points),
                    color=colour,
                    marker=marker,
                    linestyle=dash if joined else "none",
                    markerfacecolor="white" if hollow else colour,
                    capsize=3,
                    label=in_figure(f"{series.name}, selecting" if hollow else series.name),
                )
        if figure.kind == "pareto":
            for point in series.points:
                axes.annotate(
                    in_figure(step_text(point.record)),
                    (point.x, point.y),
                    (6, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _reference_line(axes, figure)
    kept = sorted({point.x for point in figure.points})
    x_ticks = kept if figure.kind == "curves" else ticks(*axes.get_xlim(), 6)
    y_ticks = ticks(*axes.get_ylim(), 6, figure.y_base)
    axes.set_xticks(x_ticks, [tick(figure.x_text(value)) for value in x_ticks])
    axes.set_yticks(y_ticks, [tick(figure.y_text(value)) for value in y_ticks])
    axes.minorticks_off()
    axes.set_xlabel(figure.x_title)
    axes.set_ylabel(figure.y_title)
    title = in_figure(f"{figure.title}\n{setting_text(figure.points[0].record)}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return made


def _quartile_bars(points: Sequence[Point]) -> Any:
    """Lengths below and above each point, 0 where it has no bar; None where none has one."""
    if all(point.low is None for point in points):
        return None
    ends = [(point.y if point.low is None else point.low, point.y, point.high or point.y) for point in points]
    return [y - low for low, y, _ in ends], [high - y for _, y, high in ends]


def _reference_line(axes: Axes, figure: Figure) -> None:
    """The roofline, or the front, where the figure has one."""
    line: list[tuple[float, float]] = list(figure.floor)
    label = "roofline of this machine (measured)" if figure.floor_name == "roofline" else figure.floor_name
    if figure.roof is not None:
        ridge, last = figure.roof.flops_per_s / figure.roof.bytes_per_s, max(p.x for p in figure.points)
        first = min(p.x for p in figure.points)
        ends = sorted({min(first, ridge), ridge, max(last, ridge)})
        line = [(x, min(figure.roof.flops_per_s, x * figure.roof.bytes_per_s)) for x in ends]
    if figure.kind == "pareto":
        line, label = [(point.x, point.y) for point in pareto_front(figure.points)], "front"
    if len(line) > 1:
        step = "steps-post" if figure.kind == "pareto" else "default"
        style = (0, (1, 2))
        axes.plot(
            *zip(*line, strict=True),
            color="#000000",
            linewidth=1,
            linestyle=style,
            drawstyle=step,
            label=in_figure(label),
        )


def model_stages(records: Sequence[Record]) -> mpl.Figure | None:
    """The model's stages as stacked bars, one for each schedule and backend."""
    chosen = [record for record in records if record.stages_s]
    if not chosen:
        return None
    figure, axes = _figure(9.0, 1.6 + 0.55 * len(chosen))
    names = [in_figure(f"{step_text(record)}\n{contender_text(record)}") for record in chosen]
    left = [0.0] * len(chosen)
    for position, stage in enumerate(ordered_stages(chosen)):
        widths = [(record.stages_s or {}).get(stage, 0.0) * 1e3 for record in chosen]
        axes.barh(
            names,
            widths,
            left=left,
            label=in_figure(stage),
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
        f"Where the time goes: {in_figure(case.preset)}, {case.shapes['height']}x{case.shapes['width']} input, "
        f"{case.mode}",
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


def speedups(records: Sequence[Record]) -> mpl.Figure | None:
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
        name = in_figure(f"{step_text(record)}\n{record.case.backend}")
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
        f"Speed-up: {in_figure(case.preset)}, {case.shapes['height']}x{case.shapes['width']} input, {case.mode}, "
        f"{case.device}, {case.threads} threads",
        loc="left",
        fontsize=10,
    )
    return figure


def write_plots(
    records: Sequence[Record], folder: Path, roof: Roof | None, quality_db: Quality = unknown
) -> list[Path]:
    """Write every plot that the records allow; returns the files."""
    made: dict[str, mpl.Figure | None] = {
        f"{figure.key}.png": picture(figure) for figure in figures(records, lambda _: roof, quality_db)
    }
    made |= {"stages.png": model_stages(records), "speedup.png": speedups(records)}
    written = []
    for name, plot in made.items():
        if plot is not None:
            with draft(folder / name) as draft_of_it:
                plot.savefig(draft_of_it)
            written.append(folder / name)
    return written
