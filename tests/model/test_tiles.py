"""Tiles: their geometry, and that a seam is where it must be and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pft_bench.model import (
    PFT,
    PRESETS,
    compare_tiled,
    parse_tile,
    plan_upscale,
    upscale,
)


@pytest.fixture
def model(make_model: Callable[..., PFT]) -> PFT:
    return make_model(backend="cpu").eval()


@pytest.mark.parametrize("size_hw", [(8, 8), (9, 40), (33, 16), (31, 29), (100, 17)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 4), (12, 2), (16, 0), (16, 8)])
def test_every_pixel_is_kept_once_and_away_from_the_tiles_border(
    model: PFT, size_hw: tuple[int, int], tile: int, overlap: int
) -> None:
    plan = plan_upscale(model, size_hw, tile=tile, overlap=overlap, memory_bytes=1 << 40)
    seen = torch.zeros(size_hw, dtype=torch.int)
    for row, column in plan.tiles:
        seen[row.keep_start : row.keep_stop, column.keep_start : column.keep_stop] += 1
        for span, length in ((row, size_hw[0]), (column, size_hw[1])):
            assert span.start % 4 == 0
            assert span.stop - span.start <= max(tile, length if plan.tile is None else tile)
            assert span.keep_start - span.start >= (overlap // 2 if span.start else 0)
            assert span.stop - span.keep_stop >= (overlap // 2 if span.stop < length else 0)
    assert (seen == 1).all()


def test_one_tile_is_the_model_itself(model: PFT) -> None:
    x = torch.rand(2, 3, 11, 14)
    calls: list[tuple[int, int]] = []
    with torch.no_grad():
        wanted = model(x)
    assert torch.equal(upscale(model, x, tile=16, progress=lambda *c: calls.append(c)), wanted)
    assert calls == [(0, 1), (1, 1)]


def test_seams_shrink_with_the_overlap_and_vanish_inside(model: PFT, make_model: Callable[..., PFT]) -> None:
    x = torch.rand(1, 3, 48, 48)
    errors = [compare_tiled(model, x, 32, overlap) for overlap in (0, 8, 24)]
    assert errors[0].max_abs > 0
    assert errors[0].psnr_db < errors[1].psnr_db < errors[2].psnr_db
    local = make_model(backend="cpu", depths=(1,), num_topk=(16,)).eval()
    # One unshifted layer and six convolutions of 3x3 and 7x7 reach less than 16 pixels past a window.
    assert compare_tiled(local, x, 40, 32).max_abs < 1e-5


def test_memory_decides_between_the_whole_image_and_tiles() -> None:
    model = PFT.from_config(PRESETS["light_x2"], "cpu")
    whole = plan_upscale(model, (360, 640), memory_bytes=8 * 10**9)
    assert whole.tile is None
    assert whole.predicted_peak_bytes <= 8 * 10**9
    tiled = plan_upscale(model, (360, 640), memory_bytes=10**9)
    assert tiled.tile is not None
    assert tiled.predicted_peak_bytes <= 10**9
    larger = plan_upscale(model, (360, 640), tile=tiled.tile + 32, memory_bytes=10**9)
    assert larger.predicted_peak_bytes > 10**9
    with pytest.raises(ValueError, match=r"memory must be at least .* got 10 MB"):
        plan_upscale(model, (360, 640), memory_bytes=10**7)


@pytest.mark.parametrize(("tile", "overlap"), [(10, None), (4, 4), (16, 3), (16, -4), (0, 0)])
def test_a_tile_that_cannot_be_is_refused(model: PFT, tile: int, overlap: int | None) -> None:
    with pytest.raises(ValueError, match="must be a multiple of"):
        plan_upscale(model, (40, 40), tile=tile, overlap=overlap, memory_bytes=1 << 40)


def test_texts() -> None:
    assert parse_tile("256:32") == (256, 32)
    assert parse_tile("256") == (256, None)
    for wrong in ("", "x", "1:", "1:2:3", "-4"):
        with pytest.raises(ValueError, match="tile must be SIZE or SIZE:OVERLAP"):
            parse_tile(wrong)
