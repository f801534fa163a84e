"""The layouts in which the field's test sets are passed around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pft_bench.apps.images import PictureError, imresize
from pft_bench.apps.quality import ImagePair, find_datasets, load_pair
from pft_bench.apps.quality.datasets import load_noted


def save(path: Path, height: int, width: int, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, value, value)).save(path)


LAYOUTS = {
    "EDSR": ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
    "EDSR, same names": ("HR/baby.png", "LR_bicubic/X4/baby.png"),
    "EDSR, small letters": ("hr/baby.png", "lr_bicubic/x4/babyX4.png"),
    "BasicSR": ("GTmod12/baby.png", "LRbicx4/baby.png"),
    "by scale": ("HR/X4/baby.png", "LR/X4/baby.png"),
    "SelfExSR": ("image_SRF_4/baby_SRF_4_HR.png", "image_SRF_4/baby_SRF_4_LR.png"),
    "first Set5": ("original/baby.bmp", None),
    "HR alone": ("HR/baby.jpg", None),
    "images alone": ("baby.png", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", [False, True])
def test_layouts(tmp_path: Path, layout: str, inside: bool) -> None:
    high, low = LAYOUTS[layout]
    save(tmp_path / "Set5" / high, 16, 12)
    if low is not None:
        save(tmp_path / "Set5" / low, 4, 3)
    (found,) = find_datasets(tmp_path if inside else tmp_path / "Set5", 4)
    assert found.name == "Set5"
    (pair,) = found.pairs
    assert pair.name == "baby"
    assert pair.high == tmp_path / "Set5" / high
    assert pair.low == (None if low is None else tmp_path / "Set5" / low)
    assert [part.shape for part in load_pair(pair, 4)] == [(4, 3, 3), (16, 12, 3)]


def test_sets_come_in_the_usual_order(tmp_path: Path) -> None:
    for name in ("Manga109", "Zoo", "Set14", "Apes", "Urban100", "Set5", "B100"):
        save(tmp_path / name / "HR" / "a.png", 8, 8)
    (tmp_path / "empty").mkdir()
    names = [dataset.name for dataset in find_datasets(tmp_path, 2)]
    assert names == ["Set5", "Set14", "B100", "Urban100", "Manga109", "Apes", "Zoo"]


def test_images_of_another_scale_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "a.png", 8, 8)
    save(tmp_path / "LR_bicubic" / "X2" / "ax2.png", 4, 4)
    (found,) = find_datasets(tmp_path, 4)
    assert found.pairs[0].low is None


def test_the_low_image_is_made_by_the_fields_bicubic(tmp_path: Path) -> None:
    from skimage import data

    pixels = data.chelsea()[:50, :43]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = find_datasets(tmp_path, 4)
    low, high = load_pair(found.pairs[0], 4)
    assert np.array_equal(high, pixels[:48, :40])
    assert np.array_equal(low, imresize(pixels[:48, :40], (12, 10), 0.25))


def test_grey_is_repeated(tmp_path: Path) -> None:
    """Set14 has one grey image; the field reads it as colour."""
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png")
    _, high = load_pair(find_datasets(tmp_path, 2)[0].pairs[0], 2)
    assert np.array_equal(high, np.full((8, 8, 3), 77))


def test_a_low_image_of_the_wrong_size(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "a.png", 18, 16)
    save(tmp_path / "LR_bicubic" / "X4" / "ax4.png", 4, 4)
    assert load_pair(find_datasets(tmp_path, 4)[0].pairs[0], 4)[1].shape == (16, 16, 3)  # cropped
    save(tmp_path / "LR_bicubic" / "X4" / "ax4.png", 5, 4)
    with pytest.raises(PictureError, match=r"must be 4x4, as a\.png \(16x18\) at scale 4, got 4x5"):
        load_pair(find_datasets(tmp_path, 4)[0].pairs[0], 4)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no such folder \(a test set has .* in LR_bicubic/X4\)"):
        find_datasets(tmp_path / "none", 4)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="must hold images"):
        find_datasets(tmp_path, 4)
    save(tmp_path / "tiny.png", 1, 3)
    with pytest.raises(PictureError, match="at least 2 pixels"):
        load_pair(find_datasets(tmp_path, 2)[0].pairs[0], 2)


def test_files_of_one_name_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.tif", "b.jpg"):
        save(tmp_path / name, 8, 8)
    (found,) = find_datasets(tmp_path, 2)
    assert [pair.high.name for pair in found.pairs] == ["a.png", "b.jpg"]
    assert found.remarks == ("left out, as another picture has the same name: 2 (a.jpg, a.tif)",)


def test_pictures_that_are_not_used_as_they_seem_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "HR" / name, 8, 8)
    for name in ("ax2.png", "a.png", "bx2.png", "other.png", "._bx2.png"):
        save(tmp_path / "LR_bicubic" / "X2" / name, 4, 4) if name[0] != "." else (
            tmp_path / "LR_bicubic" / "X2" / name
        ).touch()
    (found,) = find_datasets(tmp_path, 2)
    assert [pair.low and pair.low.name for pair in found.pairs] == ["a.png", "bx2.png", None]
    assert found.remarks == (
        "left out, as another picture has the same name: 1 (ax2.png)",
        "low-resolution pictures left out, as there is no high-resolution one of their name: 1 (other.png)",
        "made by bicubic reduction, as there is no low-resolution picture beside the others': 1 (c.png)",
    )


def test_two_folders_of_low_pictures(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "a.png", 8, 8)
    save(tmp_path / "LR_bicubic" / "X2" / "ax2.png", 4, 4)
    save(tmp_path / "LRbicx2" / "a.png", 4, 4)
    (found,) = find_datasets(tmp_path, 2)
    assert found.pairs[0].low == tmp_path / "LR_bicubic" / "X2" / "ax2.png"
    assert found.remarks == ("left out, as another picture has the same name: 1 (a.png)",)


def test_sixteen_bits_are_rounded_and_said(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "a.png")
    low, high, notes = load_noted(ImagePair("a", tmp_path / "a.png", None), 2)
    assert notes == ["a.png: 16 bits a channel read as 8"]
    assert set(np.unique(high)) == set(np.unique(low)) == {117}
