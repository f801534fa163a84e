"""The weights that come with the package: small, loadable by name, and better than bicubic where it was not trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data

import pft_bench
from pft_bench.apps.images.resize import imresize
from pft_bench.maintain.sample_photographs import SOURCES
from pft_bench.model import preset, weights_file
from pft_bench.model.files import SHIPPED

LUMA = np.array([65.481, 128.553, 24.966]) / 255


def luma_psnr(a: np.ndarray, b: np.ndarray) -> float:
    difference = ((a.astype(float) - b.astype(float)) @ LUMA)[2:-2, 2:-2]
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_small_model_beats_bicubic_on_photographs_it_has_not_seen(name: str) -> None:
    assert next(source for source in SOURCES if source.name == name).held_out
    high = getattr(data, name)()[100:228, 120:248]
    low = imresize(high, (64, 64), 0.5)
    model = pft_bench.load("small_x2")
    with torch.no_grad():
        out = model(torch.from_numpy(low).permute(2, 0, 1)[None].float() / 255)
    got = (out[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert luma_psnr(got, high) > luma_psnr(imresize(low, (128, 128), 2), high) + 0.3


def test_it_is_small_and_has_its_schedule_and_a_card() -> None:
    path = weights_file("small_x2")
    assert path.stat().st_size < 500_000
    assert pft_bench.load("small_x2").config == preset("small_x2")
    card = (SHIPPED / "small_x2.md").read_text()
    for source in SOURCES:
        assert source.name.split("_")[0].lower() in card.lower(), source.name


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"path must be .* or 'small_x2', got 'other': there is no such"
    ):
        weights_file("other")
    (tmp_path / "small_x2").write_text("mine")
    with pytest.raises(ValueError, match="which ends in nothing"):
        pft_bench.load("small_x2")
