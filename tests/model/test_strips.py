"""Inference strip by strip: the same numbers as in one piece, and only the memory that the prediction counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pft_bench.harness.measure.memory import peak_allocated
from pft_bench.model import PFT, forward_footprint, strips
from pft_bench.model.layers import from_windows, to_windows


@pytest.mark.parametrize("shift", [0, 2, 3])
@pytest.mark.parametrize("cuts", [1, 2, 3])
def test_windows_of_strips_are_those_of_the_rolled_image(shift: int, cuts: int) -> None:
    image = torch.randn(2, 24, 12, 5)
    wanted = to_windows(image, 4, shift).view(2, 6, 3, 16, 5)
    back = torch.full_like(image, torch.nan)
    for i in range(cuts):
        cut = strips.Strip(6 * i // cuts, 6 * (i + 1) // cuts)
        found = strips.cut_windows(image, cut, 4, shift)
        assert torch.equal(found, wanted[:, cut.first : cut.last].reshape(-1, 16, 5))
        strips.paste_windows(found, back, cut, 4, shift)
    assert torch.equal(back, image)
    assert torch.equal(back, from_windows(wanted.view(-1, 16, 5), 4, 24, 12, shift))


@pytest.mark.parametrize("batch", [1, 2])
def test_strips_change_nothing(
    batch: int, make_model: Callable[..., PFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(torch.float64)
    x = torch.rand(batch, 3, 22, 9, dtype=torch.float64)
    with torch.enable_grad():
        wanted = model(x).detach()
    for tokens in (1, 100, 1 << 14):
        monkeypatch.setattr(strips, "STRIP_TOKENS", tokens)
        with torch.no_grad():
            assert torch.allclose(model(x), wanted, rtol=0, atol=1e-12), tokens


def test_strips_cover_the_image_with_enough_tokens() -> None:
    for height, width in ((32, 32), (384, 640), (96, 160), (2048, 32)):
        cuts = strips.strips(1, height, width, 32)
        assert [cut.first for cut in cuts] == [0, *(cut.last for cut in cuts[:-1])]
        assert cuts[-1].last == height // 32
        least = min((cut.last - cut.first) * 32 * width for cut in cuts)
        assert len(cuts) == 1 or least >= strips.STRIP_TOKENS // 2


CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 48, "window_size": 16, "num_topk": (256, 256, 256, 100, 50, 50)},
    "all dense": {"embed_dim": 48, "window_size": 16, "num_topk": (256,) * 6},
    "sparse at once": {"embed_dim": 48, "window_size": 16, "num_topk": (64, 64, 64, 9, 9, 9)},
    "restoration": {"embed_dim": 48, "window_size": 16, "num_topk": (64, 64, 9, 9, 4, 4), "upsampler": ""},
}


@pytest.mark.parametrize("tokens", [1 << 14, 1 << 11])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_allocated_peak_is_the_predicted_one(
    name: str, tokens: int, make_model: Callable[..., PFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the margin: an activation that outlives its use, or a part that the prediction forgot."""
    monkeypatch.setattr(strips, "STRIP_TOKENS", tokens)
    monkeypatch.setattr("pft_bench.model.footprint.strips", strips.strips)
    model = make_model(backend="cpu", **CONFIGS[name]).eval()
    x = torch.rand(1, 3, 100, 30)
    with torch.no_grad():
        model(x)
        measured = peak_allocated(lambda: model(x)).bytes
    predicted = forward_footprint(model.config, (100, 30), backend="cpu", threads=torch.get_num_threads())
    assert predicted.bytes == pytest.approx(measured, rel=0.05), predicted
