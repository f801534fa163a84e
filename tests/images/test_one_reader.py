"""Every command reads a picture the same way, and the way is right: values are written down here, not read back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import chunk, encoded, no_pictures, save
from PIL import Image, ImageCms

from pft_bench.apps.images import PictureError, read_header, read_picture
from pft_bench.apps.quality import ImagePair, load_pair
from pft_bench.apps.train.photographs import Photographs, read_rgb
from pft_bench.harness.cases.image import low_resolution

HIGH, WIDE = 6, 9
GREY = np.arange(HIGH * WIDE, dtype=np.uint8).reshape(HIGH, WIDE) * 4
COLOUR = np.dstack([GREY, 255 - GREY, GREY // 2])
DEEP = COLOUR.astype(np.uint16) * 250 + 77


def upright(x: np.ndarray) -> np.ndarray:
    """What orientation 6 makes of stored pixels: turned clockwise."""
    return np.rot90(x, -1)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def oriented(format: str, **options: object) -> bytes:
    return encoded(COLOUR, format, exif=turned(), **options)


def png_deep(pixels: np.ndarray) -> bytes:
    """16-bit colour, which Pillow cannot write."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def cases() -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> (file, its colours as they must be read: [h, w, 1 or 3] uint8 or uint16)."""
    grey, alpha = GREY[..., None], np.full((HIGH, WIDE), 99, np.uint8)
    white = np.full((16, 16, 3), 255, np.uint8)
    inked = Image.fromarray(np.zeros((16, 16, 4), np.uint8), "CMYK")
    palette = Image.fromarray(GREY, "P")
    palette.putpalette(
        np.dstack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2]).ravel().tolist()
    )
    bits = GREY > 100
    second = Image.fromarray(255 - COLOUR)
    return {
        "CMYK white.jpg": (encoded(inked, "JPEG"), white),
        "CMYK white.tif": (encoded(inked, "TIFF"), white),
        "CMYK and alpha.tif": (
            tiff(
                np.dstack([np.zeros((16, 16, 4), np.uint8), np.full((16, 16), 9, np.uint8)]),
                photometric="separated",
                planarconfig="contig",
                extrasamples=["unassalpha"],
            ),
            white,
        ),
        "CMYK white, 16 bits.tif": (
            tiff(np.zeros((16, 16, 4), np.uint16), photometric="separated"),
            white.astype(np.uint16) * 257,
        ),
        "turned.png": (oriented("PNG"), upright(COLOUR)),
        "turned.jpg": (
            encoded(Image.fromarray(np.full((16, 24), 200, np.uint8)), "JPEG", exif=turned()),
            np.full((24, 16, 1), 200, np.uint8),
        ),
        "turned.webp": (oriented("WEBP", lossless=True), upright(COLOUR)),
        "turned.tif": (
            tiff(COLOUR, photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
            upright(COLOUR),
        ),
        "grey.png": (encoded(GREY, "PNG"), grey),
        "grey 16.png": (encoded(GREY.astype(np.uint16) * 250, "PNG"), grey.astype(np.uint16) * 250),
        "grey 16.tif": (tiff(GREY.astype(np.uint16) * 250), grey.astype(np.uint16) * 250),
        "white is zero.tif": (tiff(255 - GREY, photometric="miniswhite"), grey),
        "colour 16.png": (png_deep(DEEP), DEEP),
        "colour 16.tif": (tiff(DEEP, photometric="rgb"), DEEP),
        "big.tif": (tiff(COLOUR, photometric="rgb", bigtiff=True), COLOUR),
        "planes.tif": (
            tiff(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            COLOUR,
        ),
        "RGBA.png": (encoded(np.dstack([COLOUR, alpha]), "PNG"), COLOUR),
        "RGBA.tif": (encoded(np.dstack([COLOUR, alpha]), "TIFF"), COLOUR),
        "grey and alpha.png": (encoded(Image.fromarray(np.dstack([GREY, alpha]), "LA"), "PNG"), grey),
        "one colour clear.png": (encoded(COLOUR, "PNG", transparency=(0, 255, 0)), COLOUR),
        "one grey clear, 16 bits.png": (
            encoded(Image.fromarray(GREY.astype(np.uint16) * 250), "PNG", transparency=1000),
            grey.astype(np.uint16) * 250,
        ),
        "palette.png": (encoded(palette, "PNG"), COLOUR),
        "palette with a clear colour.png": (encoded(palette, "PNG", transparency=8), COLOUR),
        "one bit.png": (encoded(Image.fromarray(bits), "PNG"), bits[..., None] * np.uint8(255)),
        "one bit.tif": (encoded(Image.fromarray(bits), "TIFF"), bits[..., None] * np.uint8(255)),
        "moving.webp": (
            encoded(COLOUR, "WEBP", save_all=True, append_images=[second], lossless=True),
            COLOUR,
        ),
        "moving.png": (encoded(COLOUR, "PNG", save_all=True, append_images=[second]), COLOUR),
        "pages.tif": (encoded(COLOUR, "TIFF", save_all=True, append_images=[second]), COLOUR),
        "colour.bmp": (encoded(COLOUR, "BMP"), COLOUR),
        "grey.bmp": (encoded(GREY, "BMP"), grey),
        "palette.bmp": (encoded(palette, "BMP"), COLOUR),
        "one bit.bmp": (encoded(Image.fromarray(bits), "BMP"), bits[..., None] * np.uint8(255)),
        "a PNG by another name.jpg": (encoded(COLOUR, "PNG"), COLOUR),
    }


CASES = cases()


def for_upscale(path: Path) -> np.ndarray:
    return read_picture(path).pixels


def for_train(path: Path) -> np.ndarray:
    return read_rgb(path).permute(1, 2, 0).numpy()


def for_evaluate(path: Path) -> np.ndarray:
    low, high = load_pair(ImagePair("a", path, path), 1)
    assert np.array_equal(low, high)
    return high


def for_run(path: Path) -> np.ndarray:
    return low_resolution(read_header(path).size_hw, path)[0].permute(1, 2, 0).numpy()


READERS = (for_upscale, for_train, for_evaluate, for_run)


@pytest.mark.parametrize("name", CASES)
def test_every_command_sees_the_same_picture(tmp_path: Path, name: str) -> None:
    content, expected = CASES[name]
    path = save(tmp_path, name, content)
    found = for_upscale(path)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(found, expected)
    header = read_header(path)
    assert (header.size_hw, header.bits) == (expected.shape[:2], 8 * expected.dtype.itemsize)
    assert header.notes == read_picture(path).notes
    coloured = expected.repeat(3, 2) if expected.shape[2] == 1 else expected
    peak = np.iinfo(expected.dtype).max
    eight = np.round(coloured / peak * 255).astype(np.uint8)
    assert np.array_equal(for_train(path), eight)
    assert np.array_equal(for_evaluate(path), eight)
    assert np.abs(for_run(path) - coloured / peak).max() < 1e-5


def test_an_embedded_profile_of_cmyk_is_used_and_one_of_rgb_is_not(tmp_path: Path) -> None:
    rgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    inked = Image.fromarray(np.zeros((16, 16, 4), np.uint8), "CMYK")
    path = save(tmp_path, "a.jpg", encoded(inked, "JPEG", icc_profile=rgb))
    found = read_picture(path)
    assert np.unique(found.pixels) == [255]
    assert found.notes == ("CMYK converted to sRGB, its colour profile used up",)
    assert found.icc is None


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("moving.webp", "only the first of 2 frames"),
        ("moving.png", "only the first of 2 frames"),
        ("pages.tif", "only the first of 2 frames"),
        ("CMYK white.jpg", "CMYK converted to sRGB"),
    ],
)
def test_what_is_left_out_is_said(tmp_path: Path, name: str, note: str) -> None:
    assert read_picture(save(tmp_path, name, CASES[name][0])).notes == (note,)


def test_other_pictures_in_a_jpeg_are_said(tmp_path: Path) -> None:
    """Phones put previews and maps of gains behind the picture."""
    second = Image.fromarray(255 - COLOUR)
    content = encoded(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[second])
    found = read_picture(save(tmp_path, "a.jpg", content))
    assert found.notes == ("only the main one of the pictures in the file",)
    assert np.abs(found.pixels.astype(int) - COLOUR).mean() < 20


def test_the_profile_of_a_bmp_is_said(tmp_path: Path) -> None:
    """Its latest header may hold one, which Pillow passes over."""
    plain = encoded(COLOUR, "BMP")
    header = (124).to_bytes(4, "little") + plain[18:54] + bytes(16) + b"DEBM" + bytes(64)
    content = plain[:10] + (14 + 124).to_bytes(4, "little") + header + plain[54:]
    found = read_picture(save(tmp_path, "a.bmp", content))
    assert np.array_equal(found.pixels, COLOUR)
    assert found.notes == ("the colour profile of the BMP left out",)


def test_a_folder_is_no_picture_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(PictureError, match="must be a file with a picture"):
            read_picture(path)


NO_PICTURES = no_pictures()


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_told_in_one_line(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the header alone already, so that training does not begin with it, and the same to every command."""
    content, said = NO_PICTURES[name]
    path = save(tmp_path, name, content)
    for read in (read_header, *READERS):
        with pytest.raises(PictureError) as raised:
            read(path)
        told = str(raised.value)
        assert told.startswith(str(path)), told
        assert said in told
        assert "\n" not in told
        assert "vips" not in told.removeprefix(str(path)).lower()
    with pytest.raises(PictureError, match=f"{name} must"):
        Photographs(tmp_path, 2, 4)
    assert not caplog.records  # they would stand on the terminal, beside that line


GREY_A_X = np.dstack([GREY] * 3)


@pytest.mark.parametrize(
    ("pixels", "options", "said"),
    [
        (
            GREY_A_X,
            {"photometric": "minisblack", "extrasamples": ["unassalpha", "unspecified"]},
            "3 channels",
        ),
        (GREY_A_X, {"photometric": "minisblack"}, "3 channels"),
        (np.dstack([GREY] * 4), {"photometric": "minisblack"}, "4 channels"),
        (
            np.dstack([GREY] * 5),
            {"photometric": "rgb", "extrasamples": ["unassalpha", "unspecified"]},
            "5 channels",
        ),
        (np.dstack([GREY] * 5), {"photometric": "separated"}, "5 inks"),
        (GREY.astype(np.float32), {}, "8 or 16 bits a channel, got float"),
        (COLOUR.astype(np.float32), {"photometric": "rgb"}, "8 or 16 bits a channel, got float"),
        (GREY.astype(np.int32), {}, "8 or 16 bits a channel, got int"),
        (GREY.astype(np.uint32), {}, "8 or 16 bits a channel, got uint"),
        (GREY.astype(np.int16), {}, "8 or 16 bits a channel, got short"),
        (GREY.astype(np.int8), {}, "8 or 16 bits a channel, got char"),
        (GREY.astype(np.complex64), {}, "must be a picture that can be read, got a TIFF"),
        (GREY, {"photometric": "cfa"}, "1 channels"),
        (COLOUR, {"photometric": "icclab"}, "3 channels"),
    ],
)
def test_channels_of_other_kinds_are_refused(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, object], said: str
) -> None:
    layout = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
    path = save(tmp_path, "a.tif", tiff(pixels, **options, **layout))
    for read in (read_header, *READERS):
        with pytest.raises(PictureError, match=said):
            read(path)


def test_a_channel_of_unknown_meaning_is_not_silently_alpha(tmp_path: Path) -> None:
    fourth = np.dstack([COLOUR, GREY])
    options = {"photometric": "rgb", "planarconfig": "contig"}
    known = save(tmp_path, "known.tif", tiff(fourth, **options, extrasamples=["unassalpha"]))
    unknown = save(tmp_path, "unknown.tif", tiff(fourth, **options, extrasamples=["unspecified"]))
    assert read_picture(known).notes == ()
    (note,) = read_picture(unknown).notes
    assert "taken as alpha, though the file does not say" in note


def test_colours_multiplied_by_alpha_are_divided_again(tmp_path: Path) -> None:
    half = np.dstack([np.full((4, 4, 3), 60, np.uint8), np.full((4, 4), 128, np.uint8)])
    content = tiff(half, photometric="rgb", extrasamples=["assocalpha"])
    found = read_picture(save(tmp_path, "a.tif", content))
    assert np.abs(found.pixels.astype(int) - 60 * 255 // 128).max() <= 1


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_lab_becomes_srgb(tmp_path: Path, reader: Callable[[Path], np.ndarray]) -> None:
    """16 bits of L* = 100, a* = b* = 0 are white."""
    lab = np.zeros((4, 4, 3), np.uint16)
    lab[..., 0] = 65535
    path = save(tmp_path, "a.tif", tiff(lab, photometric="cielab"))
    found = reader(path)
    peak = 1 if found.dtype == np.float32 else np.iinfo(found.dtype).max
    assert found.min() >= peak * 0.99
    assert read_picture(path).notes == ("Lab converted to sRGB",)


def test_no_other_library_decodes_pictures() -> None:
    """Where a second reader may stand: BMP, which libvips does not know, behind the one function."""
    import pft_bench

    root = Path(pft_bench.__file__).parent
    known = {"apps/images/bitmap.py", "apps/images/tiff_tags.py"}  # the second decodes no pixels
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(
            word in path.read_text() for word in ("from PIL", "import PIL", "imageio", "imread", "tifffile")
        )
    }
    assert found == known
