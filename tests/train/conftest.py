"""A model and pictures so small that a training run takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of noise over a slope, of different sizes, one of them below another folder."""
    path = tmp_path_factory.mktemp("photographs")
    (path / "deep").mkdir()
    generator = np.random.default_rng(0)
    for name, height, width in (("a.png", 24, 40), ("b.png", 33, 21), ("deep/c.png", 64, 48)):
        slope = np.linspace(0, 200, height)[:, None, None]
        pixels = slope + generator.integers(0, 55, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path / name)
    return path


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bitwise comparisons hold for one number of threads; these models are fastest on one."""
