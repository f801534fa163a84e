"""Rows of quality, their means, and what the tables and the figure make of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pft_bench.apps.quality import (
    QualityRow,
    Restored,
    Variant,
    bicubic_row,
    find_datasets,
    model_row,
    read_rows,
)
from pft_bench.report.quality import means, quality_figures

ABOUT = {"weights": "w.pth", "device": "cpu", "dtype": "float32"}


def row(image: str, schedule: str, psnr: float = 30.0, **more: object) -> QualityRow:
    values = {"psnr_db": psnr, "ssim": 0.9, "seconds": 1.0, "backend": "cpu", **ABOUT, **more}
    return QualityRow("Set5", image, 2, schedule, **values)  # type: ignore[arg-type]


@pytest.fixture
def restored(tmp_path: Path) -> Restored:
    from PIL import Image
    from skimage import data

    Image.fromarray(data.chelsea()[100:164, 100:180]).save(tmp_path / "cat.png")
    (found,) = find_datasets(tmp_path, 2)
    return Restored.load("cats", found.pairs[0], 2)


def test_a_perfect_model(restored: Restored) -> None:
    """Whatever returns the original has an infinite PSNR, through JSON and back; the input comes in 0..1."""
    seen = []

    def restore(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.from_numpy(restored.high).permute(2, 0, 1).unsqueeze(0) / 255

    found = model_row(restored, restore, schedule="paper", backend="cpu", **ABOUT)
    assert (found.psnr_db, found.ssim) == (math.inf, pytest.approx(1))
    assert (found.low_height, found.low_width, found.low_made) == (32, 40, True)
    assert np.array_equal((seen[0][0] * 255).round().byte().permute(1, 2, 0).numpy(), restored.low)
    assert QualityRow.from_json(found.to_json()) == found


def test_a_model_of_one_channel_sees_the_planes(restored: Restored) -> None:
    def restore(x: Tensor) -> Tensor:
        assert x.shape == (3, 1, 32, 40)
        return torch.from_numpy(restored.high).permute(2, 0, 1).unsqueeze(1) / 255

    assert model_row(restored, restore, 1, schedule="a", backend="cpu", **ABOUT).psnr_db == math.inf


def test_the_bicubic_row_is_that_of_torch_inside(restored: Restored) -> None:
    def restore(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)

    other = model_row(restored, restore, schedule="torch", backend="", **ABOUT)
    assert bicubic_row(restored, **ABOUT).psnr_db == pytest.approx(other.psnr_db, abs=0.05)


def test_output_that_is_not_finite(restored: Restored) -> None:
    with pytest.raises(ValueError, match="not finite"):
        model_row(restored, lambda x: x * math.nan, schedule="a", backend="cpu", **ABOUT)


def test_a_row_has_metrics_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either metrics or a reason"):
        row("a", "paper", reason="broken")
    with pytest.raises(ValueError, match="either metrics or a reason"):
        row("a", "paper", psnr=math.nan)
    lost = row("a", "paper", psnr=math.nan, ssim=math.nan, seconds=math.nan, reason="broken")
    back = QualityRow.from_json(lost.to_json())
    assert back.reason == "broken"
    assert math.isnan(back.psnr_db)


def test_a_file_cut_short_keeps_its_whole_lines(tmp_path: Path) -> None:
    rows = [row("a", "paper"), row("b", "paper")]
    text = "".join(one.to_json() + "\n" for one in rows)
    (tmp_path / "q.jsonl").write_text(text)
    assert read_rows(tmp_path / "q.jsonl") == rows
    (tmp_path / "q.jsonl").write_text(text[:-9])
    assert read_rows(tmp_path / "q.jsonl") == rows[:1]
    (tmp_path / "q.jsonl").write_text('{"schema":"other"}\n')
    with pytest.raises(ValueError, match="not a line of"):
        read_rows(tmp_path / "q.jsonl")


def test_means_are_over_the_same_images() -> None:
    """An image that one variant lacks must not count for another: the means would not compare."""
    lost = {"psnr": math.nan, "ssim": math.nan, "seconds": math.nan, "reason": "out of memory"}
    rows = [
        row("easy", "dense", 40.0),
        row("hard", "dense", 20.0),
        row("easy", "paper", 39.0),
        row("hard", "paper", **lost),
    ]
    found = means(rows)
    assert [found[Variant(name, "cpu")]["Set5"].psnr_db for name in ("dense", "paper")] == [40.0, 39.0]
    assert found[Variant("paper", "cpu")]["Set5"].missing == 1


def test_no_figure_without_a_time() -> None:
    assert quality_figures([row("a", "paper")], []) == []
