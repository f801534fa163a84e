"""PSNR and SSIM on Y against the formulas of their papers, written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor
from torch.nn import functional

from pft_bench.apps.images import imresize
from pft_bench.apps.quality import luma, psnr_y, ssim_y

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def pair(name: str, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, cropped to fit, and what bicubic reduction and enlargement make of it."""
    pixels = getattr(data, name)()
    height, width = (side // scale for side in pixels.shape[:2])
    pixels = np.ascontiguousarray(pixels[: height * scale, : width * scale])
    low = imresize(pixels, (height, width), 1 / scale)
    return pixels, imresize(low, (pixels.shape[0], pixels.shape[1]), scale)


def y_of(pixels: np.ndarray, border: int) -> Tensor:
    """BT.601 (ITU-R BT.601-7, studio range)."""
    y = (
        torch.from_numpy(pixels).double() @ torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
        + 16
    )
    return y[border:-border, border:-border]


def blurred(maps: Tensor) -> Tensor:
    """Gaussian of 11x11 and sigma 1.5, only where it lies inside."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    return functional.conv2d(functional.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def ssim_of(first: Tensor, second: Tensor) -> float:
    """Equation 13 of Wang et al. 2004, averaged."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    maps = torch.stack((first, second, first * first, second * second, first * second)).unsqueeze(1)
    mean1, mean2, square1, square2, product = blurred(maps).squeeze(1)
    similarity = (2 * mean1 * mean2 + c1) * (2 * (product - mean1 * mean2) + c2)
    scale = (mean1**2 + mean2**2 + c1) * (square1 - mean1**2 + square2 - mean2**2 + c2)
    return float((similarity / scale).mean())


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("scale", [2, 4])
def test_equal_to_the_formulas(name: str, scale: int) -> None:
    target, restored = pair(name, scale)
    first, second = y_of(restored, scale), y_of(target, scale)
    psnr = 10 * math.log10(255**2 / float((first - second).square().mean()))
    ssim = ssim_of(first, second)
    images = torch.from_numpy(restored), torch.from_numpy(target)
    assert psnr_y(*images, scale) == pytest.approx(psnr, abs=1e-9)
    assert ssim_y(*images, scale) == pytest.approx(ssim, abs=1e-9)
    assert 20 < psnr < 45
    assert 0.6 < ssim < 0.99


def test_luma_of_known_colours() -> None:
    """BT.601 in studio range: black 16, white 235, red 81.481, green 144.553, blue 40.966."""
    colours = torch.tensor(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=torch.uint8
    )
    assert luma(colours) == pytest.approx(np.array([[16, 235, 81.481, 144.553, 40.966]]), abs=1e-12)


def test_known_psnr() -> None:
    """Grey one value apart is 219/255 apart in Y."""
    first = torch.full((16, 16, 3), 100, dtype=torch.uint8)
    expected = 20 * math.log10(255 / (219 / 255))
    assert psnr_y(first, first + 1, 0) == pytest.approx(expected, abs=1e-9)
    assert psnr_y(first, first, 0) == math.inf
    assert ssim_y(first, first, 0) == pytest.approx(1, abs=1e-12)


def test_borders_do_not_count() -> None:
    target = torch.from_numpy(pair("chelsea", 4)[0])
    restored = target.clone()
    restored[:4], restored[-4:], restored[:, :4], restored[:, -4:] = 0, 0, 0, 0
    assert psnr_y(restored, target, 4) == math.inf
    assert psnr_y(restored, target, 3) < 40


@pytest.mark.parametrize(
    ("shape", "other", "border", "said"),
    [
        ((16, 16, 3), (16, 17, 3), 0, "one size"),
        ((16, 16, 3), (16, 16, 3), 8, "border must leave"),
        ((16, 16, 3), (16, 16, 3), -1, "border must leave"),
        ((16, 16, 3), (16, 16, 3), 3, "at least 11 pixels"),
        ((16, 16, 1), (16, 16, 1), 0, r"\[h, w, 3\] uint8"),
    ],
)
def test_what_cannot_be_compared(
    shape: tuple[int, ...], other: tuple[int, ...], border: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ssim_y(torch.zeros(shape, dtype=torch.uint8), torch.zeros(other, dtype=torch.uint8), border)
