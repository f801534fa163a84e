"""What each layer still looks at: the attention row of one pixel, layer by layer, in image coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import PFT
from ..model.layers import region_map
from ..ops import observe_layers
from ..reference import Layer, relative_position

MOST_TOKENS = 1 << 14
"""Pixels of the part of an image that is computed: little enough for one strip of windows."""


@dataclass(frozen=True)
class View:
    """The part of a picture that is computed, rows `top` to `bottom` and columns `left` to `right`."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class LayerFocus:
    """The row of one query in one layer.

    `weights` [heads, h, w] are attention weights, 0 where nothing is kept, `kept` [heads, h, w] what is kept, `visible`
    [h, w] the pixels of the query's window that belong to its part of the image. Tokens that only pad the image are
    left out of all three, but counted in `candidates` and `keeps`.
    """

    block: int
    shifted: bool
    candidates: int
    keeps: int
    weights: Tensor
    kept: Tensor
    visible: Tensor


def view_around(query: tuple[int, int], size_hw: tuple[int, int], window_size: int) -> View:
    """The whole image where it is small, else whole windows around the query, on the image's grid of windows."""
    if size_hw[0] * size_hw[1] <= MOST_TOKENS:
        return View(0, 0, *size_hw)
    windows = max(1, int(MOST_TOKENS**0.5) // window_size)
    spans = []
    for place, size in zip(query, size_hw, strict=True):
        last = -(-size // window_size)
        first = max(0, min(place // window_size - windows // 2, last - windows))
        spans.append((first * window_size, min(size, (first + windows) * window_size)))
    (top, bottom), (left, right) = spans
    return View(top, left, bottom, right)


def focus_of(model: PFT, image: Tensor, query: tuple[int, int]) -> list[LayerFocus]:
    """Run the model on image [1, C, h, w] and follow the attention row of the pixel `query` (y, x) through all layers.

    The weights are softmax over a layer's candidates, as the layer itself computes them before it drops some.

    Raises:
        ValueError: the query lies outside the image, or the image has more than `MOST_TOKENS` pixels.
    """
    height, width = image.shape[-2:]
    if not (0 <= query[0] < height and 0 <= query[1] < width):
        raise ValueError(f"query must lie in the image, 0..{height - 1},0..{width - 1}, got {query}")
    if height * width > MOST_TOKENS:
        raise ValueError(f"image must have at most {MOST_TOKENS} pixels, got {height}x{width}")
    layers = model.transformer_layers()
    blocks = [block for block, depth in enumerate(model.config.depths) for _ in range(depth)]
    found: list[LayerFocus] = []

    def follow(given: Layer) -> None:
        row = _Row(model.config.window_size, layers[len(found)].shift, query, (height, width))
        found.append(row.focus(blocks[len(found)], given))

    with torch.no_grad(), observe_layers(follow):
        model(image)
    if len(found) != len(layers):
        raise RuntimeError(f"{len(layers)} layers must each be seen once, got {len(found)}")
    return found


class _Row:
    """One query's place among the windows of a layer."""

    def __init__(
        self, window_size: int, shift: int, query: tuple[int, int], size_hw: tuple[int, int]
    ) -> None:
        self.window_size = window_size
        self.size_hw = size_hw
        self.shifted = shift > 0
        padded = [-(-side // window_size) * window_size for side in size_hw]
        y, x = ((place - shift) % side for place, side in zip(query, padded, strict=True))
        self.window = (y // window_size) * (padded[1] // window_size) + x // window_size
        self.token = (y % window_size) * window_size + x % window_size
        # Sparse layers are given no regions, since what their chain kept has been masked before.
        regions = region_map(padded[0], padded[1], window_size, shift, torch.device("cpu"))[self.window]
        self.same = (regions == regions[self.token]) | (shift == 0)
        token = torch.arange(window_size**2)
        self.y = ((y // window_size) * window_size + token // window_size + shift) % padded[0]
        self.x = ((x // window_size) * window_size + token % window_size + shift) % padded[1]

    def focus(self, block: int, layer: Layer) -> LayerFocus:
        """The row, computed again in float64 from what the layer is given."""
        bias, region, index, logits = layer.bias, layer.region, layer.index, layer.logits
        heads, tokens = layer.q.shape[1], layer.keys
        row = layer.q[self.window, :, self.token].cpu().double()
        keys = layer.k[self.window].cpu().double()
        if index is None:
            places = torch.arange(tokens).expand(heads, -1)
        else:
            places = index[self.window, :, self.token].cpu().long()
        z = layer.scale * torch.einsum("hd,hcd->hc", row, keys.gather(1, _wide(places, keys.shape[-1])))
        if bias is not None:
            rows = relative_position(self.window_size, torch.tensor(self.token), places)
            z += bias.cpu().double()[rows, torch.arange(heads).unsqueeze(1)]
        if region is not None:
            labels = region[self.window % region.shape[0]].cpu()
            z -= layer.region_penalty * (labels[places] != labels[self.token]).double()
        if logits is not None:
            z += logits[self.window, :, self.token].cpu().double()
        weights = z.softmax(-1)
        best = z.topk(min(layer.topk, z.shape[-1])).indices
        kept = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, best, True)
        return LayerFocus(
            block,
            self.shifted,
            places.shape[1],
            best.shape[1],
            self._image(torch.zeros(heads, tokens).double().scatter_(1, places, weights * kept)),
            self._image(torch.zeros(heads, tokens).bool().scatter_(1, places, kept)),
            self._image(self.same.unsqueeze(0))[0],
        )

    def _image(self, row: Tensor) -> Tensor:
        """[n, tokens] of the window as [n, h, w] of the image, without the padding."""
        inside = (self.y < self.size_hw[0]) & (self.x < self.size_hw[1])
        image = row.new_zeros(row.shape[0], *self.size_hw)
        image[:, self.y[inside], self.x[inside]] = row[:, inside]
        return image


def _wide(places: Tensor, channels: int) -> Tensor:
    return places.unsqueeze(-1).expand(-1, -1, channels)
