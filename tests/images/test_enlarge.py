"""What becomes of grey, alpha and the number of bits on the way through a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pft_bench.apps.images import Picture, enlarge, imresize


def nearest(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_value_comes_through(dtype: type, planes: int, channels: int) -> None:
    top = int(np.iinfo(dtype).max) + 1
    pixels = np.random.default_rng(1).integers(0, top, (300, 240, planes)).astype(dtype)
    pixels.flat[:2] = 0, top - 1
    shapes = []

    def restore(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return nearest(x)

    found = enlarge(Picture(pixels, icc=b"profile"), restore, 2, channels=channels)
    assert shapes == [(planes if channels == 1 else 1, channels, 300, 240)]
    assert found.pixels.dtype == dtype
    assert found.icc == b"profile"
    assert np.array_equal(found.pixels, doubled(pixels))


def test_output_beyond_the_range_is_clipped() -> None:
    picture = Picture(np.full((4, 4, 3), 200, np.uint8))
    assert np.unique(enlarge(picture, lambda x: nearest(x) * 2, 2).pixels) == [255]
    assert np.unique(enlarge(picture, lambda x: nearest(x) - 2, 2).pixels) == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_enlarged_bicubically(dtype: type) -> None:
    alpha = np.random.default_rng(2).integers(0, np.iinfo(dtype).max + 1, (6, 9)).astype(dtype)
    found = enlarge(Picture(np.zeros((6, 9, 3), dtype), alpha), nearest, 2)
    assert found.alpha is not None
    assert np.array_equal(found.alpha, imresize(alpha, (12, 18), 2))
    opaque = np.full((6, 9), np.iinfo(dtype).max, dtype)
    kept = enlarge(Picture(np.zeros((6, 9, 3), dtype), opaque), nearest, 2).alpha
    assert kept is not None
    assert np.unique(kept) == [np.iinfo(dtype).max]


def test_hidden_colour_does_not_bleed_into_the_edge() -> None:
    """A white shape on transparent black: the model must see white on both sides of the edge."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    alpha = pixels[..., 0].copy()
    seen = []

    def restore(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return nearest(x)

    enlarge(Picture(pixels, alpha), restore, 2)
    assert bool((seen[0] == 1).all())
    enlarge(Picture(pixels, np.zeros_like(alpha)), restore, 2)  # nothing shows: left as it is
    assert 0 < float(seen[1].mean()) < 1


def test_what_no_picture_can_hold_is_an_error() -> None:
    picture = Picture(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not finite"):
        enlarge(picture, lambda x: nearest(x) + torch.nan, 2)
    with pytest.raises(ValueError, match=r"must return \[1, 3, 8, 8\], got \[1, 3, 4, 4\]"):
        enlarge(picture, lambda x: x, 2)


def cut_out(strength: int, dtype: type, planes: int) -> Picture:
    """A white square on black, with one ring of pixels that hardly show, as tools that multiply by alpha leave it."""
    peak = int(np.iinfo(dtype).max)
    pixels, alpha = np.zeros((24, 24, planes), dtype), np.zeros((24, 24), dtype)
    alpha[7:17, 7:17] = strength * peak // 255
    alpha[8:16, 8:16] = peak
    pixels[8:16, 8:16] = 254 * peak // 255
    return Picture(pixels, alpha)


@pytest.fixture(scope="module")
def shipped() -> torch.nn.Module:
    import pft_bench

    return pft_bench.load("small_x2").eval()


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("strength", [0, 1, 2, 3, 7])
def test_no_dark_ring_around_a_cut_out(
    shipped: torch.nn.Module, strength: int, dtype: type, planes: int
) -> None:
    """The real model, which makes 209 of 254 where it sees black beside white."""
    with torch.no_grad():
        found = enlarge(cut_out(strength, dtype, planes), shipped, 2)
    assert found.alpha is not None
    shown = found.pixels[found.alpha > found.peak // 64] / found.peak * 255
    assert shown.min() > 252


def test_a_faint_picture_keeps_its_own_colours() -> None:
    """A watermark of alpha 5 with nothing clearer around, and one far from what is clear."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3)).astype(np.uint8)
    alpha = np.full((20, 40), 5, np.uint8)
    assert np.array_equal(enlarge(Picture(pixels, alpha), nearest, 2).pixels, doubled(pixels))
    alpha[:, :4] = 255
    found = enlarge(Picture(pixels, alpha), nearest, 2).pixels
    assert np.array_equal(found[:, 24:], doubled(pixels)[:, 24:])
    assert np.array_equal(found[:, :8], doubled(pixels)[:, :8])
    assert np.array_equal(found[:, 8:24], doubled(pixels[:, 3:4]).repeat(8, 1))


def test_shadows_keep_their_colour_beside_what_is_clear() -> None:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[:, 4:] = 0
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, 4:] = 8  # 3% black
    assert np.array_equal(enlarge(Picture(pixels, alpha), nearest, 2).pixels, doubled(pixels))
