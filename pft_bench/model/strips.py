"""A layer without gradients, in little memory: one strip of windows at a time, results in buffers that are reused.

What has to exist for the whole image is the layer's input, the attention's result, v (LePE looks across window
borders) and the chains. Everything wider (qkv, the concatenated queries and keys of a dense chain, the hidden map of
the feed-forward part) exists for one strip only. Each output value is computed from the same numbers as in
`PFTLayer.forward`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..common.stages import stage
from ..ops import ChainState, depthwise_gelu_add
from .layers import DepthwiseConv

if TYPE_CHECKING:
    from .attention import PFTLayer

STRIP_TOKENS = 1 << 14
"""A strip has at least this many tokens: 16 windows of 32x32, some 100 window-heads, enough to keep many cores busy."""

Chain = list[ChainState | None]
"""The state of one chain of layers, one entry for each strip."""


@dataclass(frozen=True)
class Strip:
    """Whole rows of windows: `first` (included) to `last` (excluded) of an image's rows of windows."""

    first: int
    last: int


def strips(batch: int, height: int, width: int, window_size: int) -> tuple[Strip, ...]:
    """Cut a padded image [batch, height, width] into strips of at least `STRIP_TOKENS` tokens where it has as many."""
    rows = height // window_size
    count = max(1, min(rows, batch * height * width // STRIP_TOKENS))
    return tuple(Strip(i * rows // count, (i + 1) * rows // count) for i in range(count))


def infer_layer(
    layer: PFTLayer, x: Tensor, chain: Chain, region: Tensor | None, backend: str, cuts: Sequence[Strip]
) -> Tensor:
    """Return what `layer` makes of x [B, h, w, C], in new memory; `chain` (one state a strip) is updated in place."""
    attended, values = _attend(layer, x, chain, region, backend, cuts)
    _project(layer, x, attended, values, backend, cuts)
    del x
    _feed_forward(layer, attended, values, backend, cuts)
    return values


def _attend(
    layer: PFTLayer, x: Tensor, chain: Chain, region: Tensor | None, backend: str, cuts: Sequence[Strip]
) -> tuple[Tensor, Tensor]:
    """The attention's result before LePE and projection, and v: both [B, h, w, C]."""
    attended, values = torch.empty_like(x), torch.empty_like(x)
    columns = x.shape[2] // layer.window_size
    for i, cut in enumerate(cuts):
        with stage("window"):
            windows = cut_windows(x, cut, layer.window_size, layer.shift)
        with stage("norm"):
            windows = layer.norm1(windows)
        with stage("projection"):
            qkv = layer.wqkv(windows)
        del windows
        # Taken out of the list, so that the old state is freed as soon as the layer has used it.
        state, chain[i] = chain[i], None
        seen = None if region is None else region[cut.first * columns : cut.last * columns]
        begins = state is None
        out, state = layer.attn_win(qkv, state, seen, layer.topk, backend)
        # A dense state that begins a chain holds views of qkv, which would keep v alive with it.
        chain[i] = state.copied() if begins and state.is_dense else state
        del state
        with stage("window"):
            paste_windows(out, attended, cut, layer.window_size, layer.shift)
            paste_windows(qkv.chunk(3, dim=-1)[2], values, cut, layer.window_size, layer.shift)
        del qkv, out
        if len(cuts) > 1:
            return_free_memory()
    return attended, values


def _project(
    layer: PFTLayer, x: Tensor, attended: Tensor, values: Tensor, backend: str, cuts: Sequence[Strip]
) -> None:
    """Write x + proj(attended + LePE) over `attended`."""
    for rows, halo, inner in _bands(layer.v_LePE, x.shape[1], layer.window_size, cuts):
        with stage("lepe"):
            mixed = _depthwise(layer.v_LePE, values[:, halo], attended[:, rows], inner.start, backend)
        with stage("projection"):
            torch.add(layer.attn_win.proj(mixed), x[:, rows], out=attended[:, rows])
        del mixed


def _feed_forward(layer: PFTLayer, x: Tensor, out: Tensor, backend: str, cuts: Sequence[Strip]) -> None:
    """Write x + ConvFFN(norm2(x)) over `out`."""
    ffn = layer.convffn
    for rows, halo, inner in _bands(ffn.dwconv, x.shape[1], layer.window_size, cuts):
        with stage("norm"):
            y = layer.norm2(x[:, halo])
        with stage("ffn"):
            hidden = gelu_(ffn.fc1(y))
            del y
            mixed = _depthwise(ffn.dwconv, hidden, hidden[:, inner], inner.start, backend)
            del hidden
            torch.add(ffn.fc2(mixed), x[:, rows], out=out[:, rows])
            del mixed


def _bands(
    conv: DepthwiseConv, height: int, window_size: int, cuts: Sequence[Strip]
) -> Iterator[tuple[slice, slice, slice]]:
    """For each strip the rows to compute, those that `conv` needs for it, and the former among the latter."""
    reach = cast(nn.Conv2d, conv.depthwise_conv[0]).kernel_size[0] // 2
    for cut in cuts:
        top, bottom = cut.first * window_size, cut.last * window_size
        above, below = max(0, top - reach), min(height, bottom + reach)
        yield slice(top, bottom), slice(above, below), slice(top - above, bottom - above)


def _depthwise(conv: DepthwiseConv, x: Tensor, residual: Tensor, first_row: int, backend: str) -> Tensor:
    """`conv` on [B, h, w, C], its rows from `first_row` on, and the residual [B, rows, w, C] added."""
    convolution = cast(nn.Conv2d, conv.depthwise_conv[0])
    return depthwise_gelu_add(x, convolution.weight, convolution.bias, residual, first_row, backend)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)
    except (OSError, AttributeError):
        return None  # not glibc


def return_free_memory() -> None:
    """Give free pages inside the heap back to the system.

    Tensors below 32 MiB live in glibc's heap. A strip's old state leaves a hole there that its new, larger state does
    not fit in; over the strips of an image such holes add up to a fifth of the process.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def gelu_(x: Tensor) -> Tensor:
    """GELU in place."""
    y: Tensor = torch.ops.aten.gelu_(x)
    return y


def cut_windows(image: Tensor, cut: Strip, window_size: int, shift: int) -> Tensor:
    """The windows of a strip of [B, h, w, C], rolled back by `shift`: [B * windows, window_size**2, C]."""
    batch, _, width, channels = image.shape
    rows, columns = cut.last - cut.first, width // window_size
    windows = image.new_empty(batch, rows, columns, window_size, window_size, channels)
    for inside, outside in _matching(windows, image, cut, window_size, shift):
        inside.copy_(outside)
    return windows.view(batch * rows * columns, window_size**2, channels)


def paste_windows(windows: Tensor, image: Tensor, cut: Strip, window_size: int, shift: int) -> None:
    """Undo `cut_windows`: write [B * windows, window_size**2, C] to its places in the image [B, h, w, C]."""
    batch, width = image.shape[0], image.shape[2]
    rows, columns = cut.last - cut.first, width // window_size
    parts = windows.unflatten(1, (window_size, window_size)).unflatten(0, (batch, rows, columns))
    for inside, outside in _matching(parts, image, cut, window_size, shift):
        outside.copy_(inside)


def _matching(
    windows: Tensor, image: Tensor, cut: Strip, window_size: int, shift: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of equal shape, one on windows [B, rows, columns, w, w, C], one on the image: a copy without a roll."""
    inside = windows.transpose(2, 3)
    height, width = image.shape[1:3]
    across = list(_runs(0, width // window_size, width, window_size, shift))
    for from_y, window_y, in_y in _runs(cut.first, cut.last, height, window_size, shift):
        for from_x, window_x, in_x in across:
            part = image[:, from_y, from_x]
            part = part.unflatten(2, (-1, in_x.stop - in_x.start)).unflatten(1, (-1, in_y.stop - in_y.start))
            yield inside[:, window_y, in_y, window_x, in_x], part


def _runs(first: int, last: int, length: int, size: int, shift: int) -> Iterator[tuple[slice, slice, slice]]:
    """Along one side, windows `first` to `last` of an image rolled back by `shift`.

    Yields (positions in the image, windows counted from `first`, positions inside each): whole windows in one piece,
    the one across the seam in two.
    """
    whole = last - (shift > 0 and last * size == length)
    if whole > first:
        yield slice(first * size + shift, whole * size + shift), slice(0, whole - first), slice(0, size)
    if whole < last:
        seam = slice(whole - first, last - first)
        yield slice(whole * size + shift, length), seam, slice(0, size - shift)
        yield slice(0, shift), seam, slice(size - shift, size)
