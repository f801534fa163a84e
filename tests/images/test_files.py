"""Pictures survive reading and writing; files that are no pictures, or cannot be written, are told apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from made import files_of_at_most
from PIL import Image, ImageCms

from pft_bench.apps.images import Picture, PictureError, read_picture, write_picture
from pft_bench.apps.images.files import check_writable


def picture(channels: int = 3, dtype: type = np.uint8, alpha: bool = False, hw: tuple[int, int] = (5, 7)):
    random = np.random.default_rng(0)
    top = int(np.iinfo(dtype).max) + 1
    pixels = random.integers(0, top, (*hw, channels)).astype(dtype)
    return Picture(pixels, random.integers(0, top, hw).astype(dtype) if alpha else None)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    from skimage import data

    return data.astronaut()[:40, 100:164]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_formats_keep_every_bit(
    tmp_path: Path, suffix: str, channels: int, alpha: bool, dtype: type
) -> None:
    saved = picture(channels, dtype, alpha)
    write_picture(tmp_path / f"a{suffix}", saved)
    found = read_picture(tmp_path / f"a{suffix}")
    assert found.pixels.dtype == dtype
    assert np.array_equal(found.pixels, saved.pixels)
    assert (found.alpha is None) == (not alpha)
    assert not alpha or np.array_equal(found.alpha, saved.alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_stay_near(tmp_path: Path, photograph: np.ndarray, suffix: str) -> None:
    write_picture(tmp_path / f"a{suffix}", Picture(photograph))
    error = np.abs(read_picture(tmp_path / f"a{suffix}").pixels.astype(int) - photograph)
    assert error.mean() < 3


def test_sixteen_bits_become_eight_by_rounding(tmp_path: Path) -> None:
    flat = np.full((16, 16, 1), 200 * 257 + 140, np.uint16)  # nearer to 201
    write_picture(tmp_path / "a.jpg", Picture(flat))
    assert set(np.unique(read_picture(tmp_path / "a.jpg").pixels)) == {201}
    assert check_writable(Path("a.jpg"), (1, 1), alpha=False, depth=np.uint16) is not None
    assert check_writable(Path("a.png"), (1, 1), alpha=False, depth=np.uint16) is None


def test_pillow_reads_what_was_written(tmp_path: Path, photograph: np.ndarray) -> None:
    """An independent reader sees the same pixels, so that nothing is only right between our two ends."""
    write_picture(tmp_path / "a.png", Picture(photograph))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), photograph)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, photograph: np.ndarray, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(photograph).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, upright)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_is_kept(tmp_path: Path, photograph: np.ndarray, suffix: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photograph).save(tmp_path / f"a{suffix}", icc_profile=profile)
    found = read_picture(tmp_path / f"a{suffix}")
    write_picture(tmp_path / f"b{suffix}", found)
    assert Image.open(tmp_path / f"b{suffix}").info["icc_profile"] == profile


def test_cmyk_becomes_srgb(tmp_path: Path, photograph: np.ndarray) -> None:
    Image.fromarray(photograph).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    found = read_picture(tmp_path / "a.jpg")
    assert found.pixels.shape == photograph.shape
    assert "CMYK" in found.notes[0]
    assert (
        np.corrcoef(found.pixels.ravel(), photograph.ravel())[0, 1] > 0.8
    )  # not inverted; the profile bends it


def test_palette_with_transparency_has_alpha(tmp_path: Path, photograph: np.ndarray) -> None:
    indexed = Image.fromarray(photograph).convert("P")
    clear = int(np.asarray(indexed)[0, 0])
    indexed.save(tmp_path / "a.png", transparency=clear)
    found = read_picture(tmp_path / "a.png")
    assert found.alpha is not None
    assert np.array_equal(found.alpha == 0, np.asarray(indexed) == clear)


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_of_several_frames_the_first_is_read_and_said(
    tmp_path: Path, photograph: np.ndarray, suffix: str
) -> None:
    first, second = Image.fromarray(photograph), Image.fromarray(255 - photograph)
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], **options)
    found = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(found.pixels, photograph)
    assert found.notes == ("only the first of 2 frames",)


def _saved(photograph: np.ndarray, format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photograph).save(out, format)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, photograph: np.ndarray, format: str, share: float
) -> None:
    whole = _saved(photograph, format)
    (tmp_path / "a.png").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PictureError, match=r"a\.png must be a picture"):
        read_picture(tmp_path / "a.png")


def test_content_counts_not_the_name(tmp_path: Path, photograph: np.ndarray) -> None:
    (tmp_path / "a.jpg").write_bytes(_saved(photograph, "PNG"))
    assert np.array_equal(read_picture(tmp_path / "a.jpg").pixels, photograph)
    (tmp_path / "b.png").write_text("no picture at all")
    with pytest.raises(PictureError, match="not in a known format"):
        read_picture(tmp_path / "b.png")


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(PictureError, match="8 or 16 bits a channel, got float"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "hw", "alpha", "said"),
    [
        ("a.jpg", (4, 4), True, "transparency"),
        ("a.webp", (4, 16384), False, "16383"),
        ("a.jpeg", (65536, 1), False, "65535"),
        ("a.bmp", (4, 4), False, "must end in"),
        ("a", (4, 4), False, "must end in"),
    ],
)
def test_what_a_format_cannot_hold(name: str, hw: tuple[int, int], alpha: bool, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        check_writable(Path(name), hw, alpha=alpha, depth=np.uint8)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    old = picture()
    write_picture(tmp_path / "a.png", old)
    before = (tmp_path / "a.png").read_bytes()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        write_picture(tmp_path / "a.png", picture(hw=(50, 70)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_new_file_may_be_read_by_others(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture())
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("pixels", "alpha"),
    [
        (np.zeros((4, 4), np.uint8), None),
        (np.zeros((4, 4, 2), np.uint8), None),
        (np.zeros((4, 0, 3), np.uint8), None),
        (np.zeros((4, 4, 3), np.float32), None),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16)),
    ],
)
def test_a_wrong_picture_cannot_be_built(pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    with pytest.raises(PictureError):
        Picture(pixels, alpha)
