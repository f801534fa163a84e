"""Crops: the right pixels, the same for any number of processes, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pft_bench.apps.train import Photographs
from pft_bench.apps.train.photographs import read_rgb, reduced


def test_a_batch_is_a_function_of_seed_and_step_alone(folder: Path) -> None:
    whole = Photographs(folder, 2, 8).batch(5, 11, range(6))
    other = Photographs(folder, 2, 8)
    other.batch(5, 3, range(4))  # what was read before must not matter
    parts = [other.batch(5, 11, places) for places in (range(4, 6), range(0, 2), range(2, 4))]
    for kind in (0, 1):
        joined = torch.cat([parts[1][kind], parts[2][kind], parts[0][kind]])
        assert torch.equal(whole[kind], joined)
    assert not torch.equal(whole[1], other.batch(5, 12, range(6))[1]), "the step does not change the crops"
    assert not torch.equal(whole[1], other.batch(6, 11, range(6))[1]), "the seed does not change the crops"
    assert whole[0].shape == (6, 3, 8, 8)
    assert whole[1].shape == (6, 3, 16, 16)


def test_a_small_cache_changes_nothing(folder: Path) -> None:
    large, small = Photographs(folder, 2, 8), Photographs(folder, 2, 8, cache_bytes=1)
    assert torch.equal(large.batch(0, 0, range(16))[1], small.batch(0, 0, range(16))[1])
    assert len(small._cache) == 1


def test_crops_come_from_the_pictures_in_all_eight_turns(tmp_path: Path) -> None:
    """A picture that is one crop: what comes back must be its eight flips and rotations, each with its own LR."""
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    high = torch.from_numpy(pixels).permute(2, 0, 1)
    turns = []
    for base in (high, high.transpose(1, 2)):
        turns += [base, base.flip(1), base.flip(2), base.flip(1, 2)]
    data = Photographs(tmp_path, 2, 8)
    seen = set()
    for low, got in zip(*data.batch(0, 0, range(100)), strict=True):
        match = [i for i, turn in enumerate(turns) if torch.equal((got * 255).round().to(torch.uint8), turn)]
        assert match, "not a flip or rotation of the picture"
        seen.add(match[0])
        assert (low * 255 - reduced(turns[match[0]].contiguous(), 2)).abs().max() <= 1  # rounding of a half
    assert seen == set(range(8))


def test_crops_and_their_reductions_show_the_same_place(folder: Path) -> None:
    low, high = Photographs(folder, 2, 8).batch(0, 0, range(32))
    assert torch.nn.functional.avg_pool2d(high, 2).sub(low).abs().mean() < 0.02


def test_large_pictures_count_for_more(folder: Path) -> None:
    data = Photographs(folder, 2, 8)
    shares = np.diff(data._shares, prepend=0)
    assert shares == pytest.approx(np.array([5 * 13, 9 * 3, 25 * 17]) / (5 * 13 + 9 * 3 + 25 * 17))


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    """A camera's portrait: stored lying, with a note to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 32), (9, 9, 9)).save(tmp_path / "portrait.jpg", exif=exif)
    data = Photographs(tmp_path, 2, 8)
    assert data.sizes == [(10, 16)]
    assert read_rgb(tmp_path / "portrait.jpg").shape == (3, 20, 32)
    assert data.batch(0, 0, range(3))[0].shape == (3, 3, 8, 8)


def test_sixteen_bits_are_rounded_and_said(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 30_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "flat.png")
    assert read_rgb(tmp_path / "deep.png").unique().tolist() == [117]  # 30000 / 257 = 116.7
    assert Photographs(tmp_path, 2, 8).notes() == ["16 bits a channel read as 8: 1 (deep.png)"]


def test_a_grey_picture_has_three_channels(tmp_path: Path) -> None:
    Image.new("L", (9, 7), 77).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").shape == (3, 7, 9)


def test_errors_name_the_folder_and_the_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Photographs(tmp_path / "nothing", 2, 8)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="without any"):
        Photographs(tmp_path, 2, 8)
    with pytest.raises(ValueError, match=r"at least 22 pixels .* got 1 smaller ones .*b\.png"):
        Photographs(folder, 2, 11)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"broken\.png must be a picture that can be read"):
        Photographs(tmp_path, 2, 8)


def test_fingerprint_follows_names_and_sizes(folder: Path, tmp_path: Path) -> None:
    before = Photographs(folder, 2, 8).fingerprint()
    assert before == Photographs(folder, 2, 8).fingerprint()
    Image.new("RGB", (40, 24)).save(tmp_path / "a.png")
    assert before != Photographs(tmp_path, 2, 8).fingerprint()
