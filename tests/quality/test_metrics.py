"""PSNR and SSIM on Y against scikit-image's independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import color, data, metrics

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


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("scale", [2, 4])
def test_equal_to_scikit_image(name: str, scale: int) -> None:
    target, restored = pair(name, scale)
    y = [color.rgb2ycbcr(image)[scale:-scale, scale:-scale, 0] for image in (target, restored)]
    first, second = torch.from_numpy(restored), torch.from_numpy(target)
    psnr = metrics.peak_signal_noise_ratio(*y, data_range=255)
    ssim = metrics.structural_similarity(
        *y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert psnr_y(first, second, scale) == pytest.approx(psnr, abs=1e-9)
    assert ssim_y(first, second, scale) == pytest.approx(ssim, abs=1e-9)
    assert 20 < psnr < 45
    assert 0.6 < ssim < 0.99


def test_luma_of_known_colours() -> None:
    """BT.601 in studio range: black 16, white 235, red 81.481, green 144.553, blue 40.966."""
    colours = torch.tensor(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=torch.uint8
    )
    expected = torch.tensor([[16, 235, 81.481, 144.553, 40.966]], dtype=torch.float64)
    assert torch.allclose(luma(colours), expected, atol=1e-12, rtol=0)


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
