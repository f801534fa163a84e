"""The field's bicubic: MATLAB's imresize, against known values, its properties and an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pft_bench.apps.images import imresize


def photograph() -> np.ndarray:
    from skimage import data

    return data.chelsea()[:120, 60:180]


@pytest.mark.parametrize("scale", [2, 3, 4, 1 / 2, 1 / 3, 1 / 4])
def test_equals_torch_away_from_the_border(scale: float) -> None:
    """PyTorch's anti-aliased bicubic has the same kernel (a = -0.5) and another treatment of borders."""
    pixels = photograph().astype(float)
    size = (round(120 * scale), round(120 * scale))
    found = imresize(pixels, size, scale)
    x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    other = functional.interpolate(x, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    edge = int(np.ceil(2 * max(1, scale))) + 1
    inside = (slice(edge, -edge), slice(edge, -edge))
    assert np.abs(found - other)[inside].max() < 1e-9
    assert np.abs(found - other).max() > 1e-3  # the borders do differ, so the comparison means something


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_borders_are_mirrored(scale: int) -> None:
    """Reducing a picture with its mirror images around it gives the same, without any border treatment."""
    pixels = photograph()[:24, :24, 0].astype(float)
    margin = 12
    wide = np.pad(pixels, margin, mode="symmetric")
    small = imresize(pixels, (24 // scale, 24 // scale), 1 / scale)
    large = imresize(wide, (48 // scale, 48 // scale), 1 / scale)
    kept = slice(margin // scale, -margin // scale)
    assert np.allclose(small, large[kept, kept], atol=1e-10)


def test_known_weights_of_a_reduction_by_two() -> None:
    """Keys' cubic with a = -0.5 at 1/4, 3/4, 5/4, 7/4, halved: the step response is their running sum."""
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    step = np.r_[np.zeros(16), np.ones(16)][None, :].repeat(8, 0)
    found = imresize(step, (4, 16), 0.5)[0]
    expected = [weights[np.arange(2 * i - 3, 2 * i + 5) >= 16].sum() for i in range(4, 12)]
    assert np.allclose(found[4:12], expected, atol=1e-12)


@pytest.mark.parametrize("scale", [4, 1 / 3])
def test_constants_stay_and_ramps_stay_straight(scale: float) -> None:
    size = (round(30 * scale), round(30 * scale))
    assert np.allclose(imresize(np.full((30, 30), 0.3), size, scale), 0.3, atol=1e-14)
    ramp = np.arange(30.0)[None, :].repeat(30, 0)
    inner = imresize(ramp, size, scale)[0][len(range(size[1])) // 3 : -(size[1] // 3)]
    assert np.allclose(np.diff(inner), 1 / scale, atol=1e-12)


def test_integers_are_rounded_between_the_passes() -> None:
    """As MATLAB does for uint8; with one rounding at the end some pixels come out one grey value apart."""
    pixels = photograph()
    found = imresize(pixels, (30, 30), 0.25)
    rows = np.floor(imresize_rows(pixels) + 0.5).clip(0, 255)
    once = np.floor(imresize(pixels.astype(float), (30, 30), 0.25) + 0.5).clip(0, 255)
    both = np.floor(imresize_rows(rows.transpose(1, 0, 2)).transpose(1, 0, 2) + 0.5).clip(0, 255)
    assert found.dtype == np.uint8
    assert np.array_equal(found, both)
    assert 0 < (found != once).sum() < 0.5 * found.size
    assert np.abs(found - once).max() <= 1


def imresize_rows(pixels: np.ndarray) -> np.ndarray:
    """One pass along the rows by PyTorch, on the mirrored picture."""
    wide = np.pad(pixels.astype(float), ((16, 16), (0, 0), (0, 0)), mode="symmetric")
    x = torch.from_numpy(wide).permute(2, 0, 1).unsqueeze(0)
    size = (wide.shape[0] // 4, wide.shape[1])
    y = functional.interpolate(x, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return y[4:-4]


def test_smallest_pictures() -> None:
    one = np.array([[7]], np.uint8)
    assert np.array_equal(imresize(one, (4, 4), 4), np.full((4, 4), 7))
    assert np.array_equal(imresize(one, (1, 1), 0.25), one)
    with pytest.raises(ValueError, match="scale must be positive"):
        imresize(one, (1, 1), 0)
