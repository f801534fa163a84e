"""The figure of progressive focus: what each layer still looks at, one small picture a layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .canvas import Array, blank, heat, save, style

if TYPE_CHECKING:
    from .canvas import Axes

_DIM = 0.22
"""Brightness of what the query does not see."""
_QUERY = "#00e5ff"


class Panel:
    """One layer's row as arrays: `weights` [h, w], `share` [h, w] of heads that keep a pixel, `visible` [h, w]."""

    def __init__(
        self,
        block: int,
        shifted: bool,
        candidates: int,
        keeps: int,
        weights: Array,
        share: Array,
        visible: Array,
    ) -> None:
        self.block, self.shifted, self.candidates, self.keeps = block, shifted, candidates, keeps
        self.weights, self.share, self.visible = weights, share, visible


def write_focus_plot(
    panels: Sequence[Panel], picture: Array, query: tuple[int, int], title: str, subtitle: str, path: Path
) -> Path:
    """Draw the panels in rows of blocks; `picture` is [h, w, 3] in 0..1 and `query` a pixel (y, x) of it."""
    blocks = [
        [(number, panel) for number, panel in enumerate(panels) if panel.block == block]
        for block in range(panels[-1].block + 1)
    ]
    columns = max(map(len, blocks))
    cell = 1.62
    left, top = 2.6, 0.75
    width, height = left + columns * cell + 0.15, top + len(blocks) * (cell + 0.2) + 0.1
    figure = blank(72 * width, 72 * height)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at inches from the left and the top."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    with style():
        figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=12, weight="bold", va="top")
        figure.text(0.12 / width, 1 - 0.4 / height, subtitle, fontsize=8.5, color="#444444", va="top")
        box = _box(panels)
        _overview(place(0.12, top + 0.2, left - 0.4, left - 0.4), picture, query, box)
        _key(place(0.2, top + left + 0.25, left - 0.56, 0.12))
        for row, block in enumerate(blocks):
            for column, (number, panel) in enumerate(block):
                axes = place(left + column * cell, top + row * (cell + 0.2) + 0.2, cell - 0.1, cell - 0.1)
                _panel(axes, panel, number, picture, query, box)
    return save(figure, path)


def _box(panels: Sequence[Panel]) -> tuple[int, int, int, int]:
    """Rows and columns that any of the layers can see: top, bottom, left, right; square where the picture allows."""
    visible = np.any([panel.visible for panel in panels], axis=0)
    limits = []
    for axis in (1, 0):
        places = np.flatnonzero(visible.any(axis=axis))
        limits += [int(places[0]), int(places[-1]) + 1]
    return limits[0], limits[1], limits[2], limits[3]


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, box: tuple[int, int, int, int], colour: str, width: float) -> None:
    top, bottom, left, right = (edge - 0.5 for edge in box)
    corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axes.plot(*corners, color=colour, linewidth=width, solid_joinstyle="miter")


def _mark(axes: Axes, query: tuple[int, int], size: float) -> None:
    y, x = query
    axes.plot([x], [y], marker="s", markersize=size, markeredgewidth=1.3, color=_QUERY, fillstyle="none")


def _overview(axes: Axes, picture: Array, query: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    axes.imshow(picture, interpolation="nearest")
    _outline(axes, box, _QUERY, 1.4)
    _mark(axes, query, 3.5)
    axes.set_title("input: the query and what its windows cover", fontsize=7.5, loc="left", pad=3)
    _bare(axes)


def _key(axes: Axes) -> None:
    """The colours of the weights, and in words what else is drawn."""
    ramp = np.linspace(0, 1, 128)[None, :]
    axes.imshow(heat(ramp), aspect="auto")
    _bare(axes)
    axes.set_title("attention weight", fontsize=7.5, loc="left", pad=3)
    axes.text(0, 1.5, "0", fontsize=7, va="top", ha="left")
    axes.text(127, 1.5, "the layer's largest", fontsize=7, va="top", ha="right")
    words = (
        "Bright: tokens the layer keeps\n(the more heads keep one, the brighter).\n"
        "Dark: dropped, or outside the window.\n"
        "Small number: share of the row's attention\nthat the kept tokens hold."
    )
    axes.text(0, 4.6, words, fontsize=7, va="top", ha="left", color="#333333", linespacing=1.5)


def _blend(panel: Panel, picture: Array) -> Array:
    grey = picture @ np.array([0.299, 0.587, 0.114])
    seen = np.sqrt(panel.share)[..., None]  # a token that one head of six keeps must still be seen
    image = _DIM * grey[..., None] * (1 - seen) + picture * seen
    highest = panel.weights.max()
    relative = panel.weights / highest if highest > 0 else panel.weights
    opacity = 0.85 * np.sqrt(relative)[..., None]
    blended: Array = image * (1 - opacity) + heat(relative) * opacity
    return blended.clip(0, 1)


def _panel(
    axes: Axes,
    panel: Panel,
    number: int,
    picture: Array,
    query: tuple[int, int],
    box: tuple[int, int, int, int],
) -> None:
    top, bottom, left, right = box
    axes.imshow(_blend(panel, picture), interpolation="nearest")
    axes.set_xlim(left - 0.5, right - 0.5)
    axes.set_ylim(bottom - 0.5, top - 0.5)
    _outline(axes, _box([panel]), "white", 0.6)
    _mark(axes, query, 3.0)
    _bare(axes)
    step = f"{panel.keeps}" if panel.candidates == panel.keeps else f"{panel.candidates} \u2192 {panel.keeps}"
    axes.set_title(
        f"{number + 1}: {step}{', shifted' if panel.shifted else ''}", fontsize=7.5, loc="left", pad=2.5
    )
    axes.text(
        0.97,
        0.04,
        f"{100 * panel.weights.sum():.0f}%",
        transform=axes.transAxes,
        fontsize=6.5,
        color="white",
        ha="right",
        bbox={"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 1.2},
    )
