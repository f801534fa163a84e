"""Images of any size: at once where memory allows it, else in tiles that overlap.

Tiles begin on the model's window grid, so that away from its border a tile computes the windows of the whole image.
What differs is what lies near a border: the model's layers carry information across windows, and a tile does not see
what is outside of it. Each pixel is taken from the tile whose border is farther away, half of the overlap at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import require
from ..common.container import memory_left
from ..common.text import show_bytes
from .config import PFTConfig
from .footprint import forward_footprint
from .pft import PFT

Progress = Callable[[int, int], None]

SHARE_OF_AVAILABLE = 0.8
"""Of the memory that is available, how much an image may take where no limit is given."""
MOST_WINDOWS = 64
"""Side of the largest tile that is tried, in windows."""


@dataclass(frozen=True)
class Span:
    """Along one side of the image: what a tile computes, and the part of it that is kept (low-resolution pixels)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class UpscalePlan:
    """How an image will be computed. `tile` is None for the whole image at once; `tiles` are (rows, columns)."""

    tiles: tuple[tuple[Span, Span], ...]
    tile: int | None
    overlap: int
    predicted_peak_bytes: int
    """Of one tile's forward pass, above what the process holds; with it the image that is assembled."""
    memory_bytes: int


@dataclass(frozen=True)
class Seams:
    """The tiled image against the whole one: the largest difference (of 0..1), and the PSNR of one in the other."""

    max_abs: float
    psnr_db: float

    @classmethod
    def between(cls, tiled: Tensor, whole: Tensor) -> Seams:
        """Measure them on two results of the same image."""
        tiled, whole = tiled.double(), whole.double()
        mean_square = float((tiled.clamp(0, 1) - whole.clamp(0, 1)).pow(2).mean())
        return cls(
            max_abs=float((tiled - whole).abs().max()),
            psnr_db=math.inf if mean_square == 0 else -10 * math.log10(mean_square),
        )

    def __str__(self) -> str:
        return f"largest difference {self.max_abs * 255:.2g} of 255 levels, PSNR {self.psnr_db:.1f} dB"


def parse_tile(text: str) -> tuple[int, int | None]:
    """`SIZE` or `SIZE:OVERLAP` in low-resolution pixels."""
    size, colon, overlap = text.partition(":")
    if not size.isdecimal() or (colon and not overlap.isdecimal()):
        raise ValueError(f"tile must be SIZE or SIZE:OVERLAP in pixels, e.g. 256:32, got {text!r}")
    return int(size), int(overlap) if colon else None


def available_bytes() -> int:
    """Memory that this machine can still give, or a container's limit where that leaves less."""
    import psutil  # here: a lent machine without it can compute and measure all the same

    left, machine = memory_left(), int(psutil.virtual_memory().available)
    return machine if left is None else min(left, machine)


def plan_upscale(
    model: PFT,
    size_hw: tuple[int, int],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    memory_bytes: int | None = None,
    batch: int = 1,
) -> UpscalePlan:
    """Choose how to compute an image of `size_hw` pixels; nothing is computed.

    Args:
        model: it says the schedule, the backend and the device; on a GPU its free memory counts.
        size_hw: height and width of the low-resolution image.
        tile: side of a tile with its overlaps, a multiple of the window size. None: the whole image where its
            predicted peak fits, else the largest tile that does.
        overlap: what neighbouring tiles share, a multiple of half a window; default one window.
        memory_bytes: what the forward pass may take beside what the process holds already; default 80% of what is
            available.
        batch: images at once.

    Raises:
        ValueError: a tile or overlap that cannot be, or not enough memory for the smallest tile.
    """
    size = model.config.window_size
    overlap = size if overlap is None else overlap
    if overlap < 0 or overlap % max(1, size // 2):
        raise ValueError(f"overlap must be a multiple of half a window, {size // 2} pixels, got {overlap}")
    least = size * -(-(overlap + size) // size)
    if tile is not None and (tile % size or tile < least):
        raise ValueError(
            f"tile must be a multiple of the window size {size} and at least {least} with overlap {overlap}, "
            f"got {tile}"
        )
    memory = _default_memory(model) if memory_bytes is None else memory_bytes
    if tile is None and _peak(model, size_hw, size_hw, batch) > memory:
        sides = range(size * MOST_WINDOWS, least - 1, -size)
        tile = next(
            (side for side in sides if _peak(model, _capped(size_hw, side), size_hw, batch) <= memory), None
        )
        if tile is None:
            needed = _peak(model, _capped(size_hw, least), size_hw, batch)
            raise ValueError(
                f"memory must be at least {show_bytes(needed, up=True)} beside what the process holds, for tiles of "
                f"{least} pixels with overlap {overlap}, got {show_bytes(memory)}"
            )
    if tile is not None and tile >= max(size_hw):
        tile = None
    computed = size_hw if tile is None else _capped(size_hw, tile)
    rows, columns = (_spans(side, tile, overlap, size) for side in size_hw)
    return UpscalePlan(
        tiles=tuple((row, column) for row in rows for column in columns),
        tile=tile,
        overlap=0 if tile is None else overlap,
        predicted_peak_bytes=_peak(model, computed, size_hw, batch),
        memory_bytes=memory,
    )


def upscale(
    model: PFT,
    image: Tensor,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Restore [B, in_chans, h, w] in 0..1 to [B, in_chans, h*scale, w*scale], in tiles where `plan_upscale` says so.

    `progress(done, total)` is called before the first tile and after each. One tile gives what `model(image)` gives.
    """
    plan = plan_upscale(
        model,
        (image.shape[2], image.shape[3]),
        tile=tile,
        overlap=overlap,
        memory_bytes=memory_bytes,
        batch=image.shape[0],
    )
    report = progress or (lambda done, total: None)
    report(0, len(plan.tiles))
    with torch.no_grad():
        if plan.tile is None:
            result: Tensor = model(image)
            report(1, 1)
            return result
        scale = model.config.output_scale
        result = image.new_empty(*image.shape[:2], image.shape[2] * scale, image.shape[3] * scale)
        for done, (row, column) in enumerate(plan.tiles, 1):
            made = model(image[..., row.start : row.stop, column.start : column.stop])
            result[..., _kept(row, scale, 0), _kept(column, scale, 0)] = made[
                ..., _kept(row, scale, row.start), _kept(column, scale, column.start)
            ]
            report(done, len(plan.tiles))
    return result


def compare_tiled(
    model: PFT, image: Tensor, tile: int, overlap: int | None = None, progress: Progress | None = None
) -> Seams:
    """Measure the seams: the tiled result against the whole image's, which is computed as well."""
    tiled = upscale(model, image, tile=tile, overlap=overlap, progress=progress)
    with torch.no_grad():
        return Seams.between(tiled, model(image))


def _spans(length: int, tile: int | None, overlap: int, size: int) -> tuple[Span, ...]:
    """Tiles along one side, each beginning on the window grid and ending at the image's end at the latest."""
    if tile is None or length <= tile:
        return (Span(0, length, 0, length),)
    # Rounded down to the grid, so that tiles share at least the overlap.
    step = (tile - overlap) // size * size
    starts = list(range(0, length - tile + step, step))
    # The last one may be short: it begins on the grid too, as late as its neighbour's end allows.
    ends = [min(start + tile, length) for start in starts]
    cuts = [0, *((start + end) // 2 for start, end in zip(starts[1:], ends[:-1], strict=True)), length]
    return tuple(Span(s, e, a, b) for s, e, a, b in zip(starts, ends, cuts[:-1], cuts[1:], strict=True))


def _kept(span: Span, scale: int, origin: int) -> slice:
    return slice((span.keep_start - origin) * scale, (span.keep_stop - origin) * scale)


def _capped(size_hw: tuple[int, int], tile: int) -> tuple[int, int]:
    return min(size_hw[0], tile), min(size_hw[1], tile)


def _peak(model: PFT, computed_hw: tuple[int, int], size_hw: tuple[int, int], batch: int) -> int:
    """A tile's forward pass, and the image that tiles are assembled in."""
    config: PFTConfig = model.config
    weight = model.conv_first.weight
    chosen = require(model.backend, weight.device, weight.dtype).name
    peak = forward_footprint(
        config,
        computed_hw,
        batch=batch,
        backend=chosen,
        threads=torch.get_num_threads(),
        itemsize=weight.element_size(),
    ).bytes
    if computed_hw != size_hw:
        pixels = size_hw[0] * size_hw[1] * config.output_scale**2
        peak += batch * config.in_chans * pixels * weight.element_size()
    return peak


def _default_memory(model: PFT) -> int:
    device = model.conv_first.weight.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return int(SHARE_OF_AVAILABLE * free)
