"""What stands beside the pixels: kept where the format has a place for it, told for an upright picture, else noted."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from pictures import chunk, encoded, save
from PIL import Image, ImageCms
from PIL.ExifTags import IFD
from PIL.TiffImagePlugin import IFDRational

from pft_bench.apps.images import Metadata, Picture, fit_to_file, read_picture, write_picture

SUFFIXES = (".jpg", ".png", ".webp", ".tif")
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}
PIXELS = np.zeros((24, 30, 3), np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x50\x00\x05Alice"
"""By-line: Alice."""


def of_a_camera(orientation: int = 6) -> Image.Exif:
    """What a camera writes: date, maker's note, place, a density, the stored size."""
    exif = Image.Exif()
    exif.update({0x112: orientation, 0x10F: "Maker", 0x110: "Model", 0x132: "2020:01:02 03:04:05"})
    exif.update({0x11A: IFDRational(300), 0x11B: IFDRational(300), 0x128: 2})
    exif.get_ifd(IFD.Exif).update(
        {0x9003: "2020:01:02 03:04:05", 0x927C: b"MAKER\0\1\2", 0xA002: 30, 0xA003: 24}
    )
    exif.get_ifd(IFD.GPSInfo).update({1: "N", 2: (IFDRational(48), IFDRational(30), IFDRational(1234, 100))})
    return exif


def photograph(folder: Path, suffix: str) -> Path:
    """A picture with all of it, lying on its side."""
    options: dict[str, object] = {"exif": of_a_camera(), "dpi": (300, 300)}
    if suffix == ".tif":
        exif = of_a_camera()
        exif[700] = XMP
        options["exif"] = exif.tobytes()  # Pillow passes over the folders of an object
    elif suffix == ".png":
        options["pnginfo"] = info = __import__("PIL.PngImagePlugin").PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    else:
        options["xmp"] = XMP
    return save(folder, f"in{suffix}", encoded(PIXELS, FORMATS[suffix], **options))


def enlarged(source: Path, target: Path) -> list[str]:
    """What upscale does, without a model; the notes."""
    picture = read_picture(source)
    height, width = (2 * side for side in picture.size_hw)
    fitted, notes = fit_to_file(target, picture, (height, width))
    pixels = picture.pixels.repeat(2, 0).repeat(2, 1)
    write_picture(target, Picture(pixels, None, fitted.icc, metadata=fitted.metadata))
    return [*picture.notes, *notes]


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_date_camera_and_place_survive_and_the_picture_is_upright_once(
    tmp_path: Path, source: str, target: str
) -> None:
    """Pillow reads what was written: an independent reader, that would turn what still says it lies."""
    out = tmp_path / f"out{target}"
    notes = enlarged(photograph(tmp_path, source), out)
    assert notes == []
    with Image.open(out) as image:
        exif, inner, place = (found := image.getexif()), found.get_ifd(IFD.Exif), found.get_ifd(IFD.GPSInfo)
        assert image.size == (48, 60)
        assert (exif[0x10F], exif[0x110], exif[0x132]) == ("Maker", "Model", "2020:01:02 03:04:05")
        assert exif.get(0x112, 1) == 1
        assert (inner[0x9003], inner[0x927C]) == ("2020:01:02 03:04:05", b"MAKER\0\1\2")
        assert (inner[0xA002], inner[0xA003]) == (48, 60)
        assert place[1] == "N"
        assert [float(part) for part in place[2]] == [48, 30, 12.34]
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
        assert b'tiff:Orientation="1"' in xmp
        assert b'xmp:Rating="4"' in xmp
        if target == ".webp":  # it has no other place
            assert (exif[0x11A], exif[0x128]) == (300, 2)
        else:
            assert np.allclose([float(part) for part in image.info["dpi"]], 300, atol=0.01)
    assert read_picture(out).size_hw == (60, 48)
    assert read_picture(out).metadata.density == pytest.approx((300 / 0.0254,) * 2, rel=1e-4)


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", [*SUFFIXES, ".bmp"])
def test_nothing_is_made_up(tmp_path: Path, source: str, target: str) -> None:
    """A picture that tells nothing: no density, no EXIF."""
    path = save(tmp_path, f"in{source}", encoded(PIXELS, FORMATS.get(source, "BMP")))
    if source == ".bmp":  # Pillow writes 96 dots an inch: take them out
        content = bytearray(path.read_bytes())
        content[38:46] = bytes(8)
        path.write_bytes(content)
    out = tmp_path / f"out{target}"
    assert enlarged(path, out) == []
    with Image.open(out) as image:
        assert "exif" not in image.info
        if target == ".tif":
            assert (image.tag_v2[296], image.tag_v2[282]) == (1, 1)  # no unit
        else:
            assert "dpi" not in image.info
    assert read_picture(out).metadata == Metadata()


@pytest.mark.parametrize("target", SUFFIXES)
def test_densities_that_differ_turn_with_the_picture(tmp_path: Path, target: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    path = save(tmp_path, "in.jpg", encoded(PIXELS, "JPEG", exif=exif, dpi=(300, 150)))
    notes = enlarged(path, tmp_path / f"out{target}")
    found = read_picture(tmp_path / f"out{target}").metadata.density
    if target == ".webp":
        assert notes == ["left out, as .webp has no place for it: density"]
        assert found is None
    else:
        assert notes == []
        assert found == pytest.approx((150 / 0.0254, 300 / 0.0254), rel=1e-3)


def with_iptc(folder: Path, suffix: str) -> Path:
    if suffix == ".tif":
        return save(folder, "in.tif", encoded(PIXELS, "TIFF", tiffinfo={33723: IPTC}))
    resource = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(IPTC).to_bytes(4, "big") + IPTC
    content = encoded(PIXELS, "JPEG")
    return save(
        folder,
        "in.jpg",
        content[:2] + b"\xff\xed" + (len(resource) + 2).to_bytes(2, "big") + resource + content[2:],
    )


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", [".jpg", ".tif"])
def test_iptc(tmp_path: Path, source: str, target: str) -> None:
    from PIL import IptcImagePlugin

    notes = enlarged(with_iptc(tmp_path, source), tmp_path / f"out{target}")
    if target in (".png", ".webp"):
        assert notes == [f"left out, as {target} has no place for it: IPTC"]
        return
    assert notes == []
    with Image.open(tmp_path / f"out{target}") as image:
        assert IptcImagePlugin.getiptcinfo(image)[2, 80] == b"Alice"


@pytest.mark.parametrize("target", SUFFIXES)
def test_texts(tmp_path: Path, target: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Author", "Zoë")
    info.add_itxt("Title", "猫")
    path = save(tmp_path, "in.png", encoded(PIXELS, "PNG", pnginfo=info))
    notes = enlarged(path, tmp_path / f"out{target}")
    if target == ".png":
        assert notes == []
        with Image.open(tmp_path / "out.png") as image:
            assert image.text == {"Author": "Zoë", "Title": "猫"}
    else:
        assert notes == [f"left out, as {target} has no place for it: text (Author, Title)"]


@pytest.mark.parametrize("source", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize(
    "block", [b"Exif\0\0no block", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_damaged_exif_is_left_out_and_said(tmp_path: Path, source: str, target: str, block: bytes) -> None:
    path = save(tmp_path, f"in{source}", encoded(PIXELS, FORMATS[source], exif=block))
    assert enlarged(path, tmp_path / f"out{target}") == ["its EXIF, which is damaged, left out"]
    with Image.open(tmp_path / f"out{target}") as image:
        assert image.size == (60, 48)
        assert "exif" not in image.info


def test_what_is_too_long_for_jpeg(tmp_path: Path) -> None:
    picture = Picture(PIXELS, metadata=Metadata(xmp=b"x" * 70_000, iptc=b"y" * 70_000))
    fitted, notes = fit_to_file(tmp_path / "a.jpg", picture, (48, 60))
    assert notes == ["left out, as .jpg has no place for it: XMP of 70000 bytes, IPTC of 70000 bytes"]
    assert fitted.metadata == Metadata()
    for suffix in (".png", ".webp", ".tif"):
        write_picture(tmp_path / f"a{suffix}", picture)
        assert read_picture(tmp_path / f"a{suffix}").metadata.xmp == picture.metadata.xmp


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("quality", [95, 100])
def test_webp_with_metadata_keeps_its_pixels(tmp_path: Path, alpha: bool, quality: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (25, 31, 3)).astype(np.uint8)
    opacity = pixels[..., 0].copy() if alpha else None
    bare, full = Picture(pixels, opacity), Picture(pixels, opacity, metadata=Metadata(xmp=XMP))
    write_picture(tmp_path / "bare.webp", bare, quality=quality)
    write_picture(tmp_path / "full.webp", full, quality=quality)
    with Image.open(tmp_path / "bare.webp") as first, Image.open(tmp_path / "full.webp") as second:
        assert first.mode == second.mode == ("RGBA" if alpha else "RGB")
        assert np.array_equal(np.asarray(first), np.asarray(second))
        assert b"Rating" in second.info["xmp"]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def of_space(space: bytes) -> bytes:
    return SRGB[:16] + space + SRGB[20:]


PROFILES = {
    "padded": (SRGB + bytes(4), SRGB, f"cut to the {len(SRGB)} bytes"),
    "says more": (
        (len(SRGB) + 40).to_bytes(4, "big") + SRGB[4:],
        None,
        f"it says {len(SRGB) + 40} bytes and has",
    ),
    "says less": (
        (200).to_bytes(4, "big") + SRGB[4:],
        None,
        "it says 200 bytes and has|end beyond the 200 bytes",
    ),
    "says nothing": (bytes(4) + SRGB[4:], None, "it says 0 bytes and has"),
    "cut": (SRGB[:300], None, "bytes and has 300"),
    "short": (b"profile", None, "it is none"),
    "unsigned": (SRGB[:36] + b"none" + SRGB[40:], None, "it is none"),
    "of CMYK": (of_space(b"CMYK"), None, "it is for CMYK and the picture is RGB"),
    "of grey": (of_space(b"GRAY"), None, "it is for GRAY and the picture is RGB"),
    "of Lab": (of_space(b"Lab "), None, "it is for Lab and the picture is RGB"),
    "a link": (SRGB[:12] + b"link" + SRGB[16:], None, "not the profile of a picture"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_never_makes_writing_fail(tmp_path: Path, suffix: str, name: str) -> None:
    given, kept, said = PROFILES[name]
    picture = Picture(PIXELS, icc=given)
    fitted, (note,) = fit_to_file(tmp_path / f"a{suffix}", picture, (48, 60))
    assert fitted.icc == kept
    assert "colour profile" in note
    assert re.search(said, note)
    write_picture(tmp_path / f"a{suffix}", picture)
    assert read_picture(tmp_path / f"a{suffix}").icc == kept


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_is_dropped_is_said_whatever_file_it_came_in(
    tmp_path: Path, format: str, name: str
) -> None:
    """Some decoders drop what they do not like without a word."""
    given, kept, said = PROFILES[name]
    picture = read_picture(save(tmp_path, "in", encoded(PIXELS, format, icc_profile=given)))
    fitted, (note,) = fit_to_file(tmp_path / "a.png", picture, (48, 60))
    assert fitted.icc == kept
    assert re.search(said, note)


def test_a_profile_that_cannot_be_unpacked_is_said(tmp_path: Path) -> None:
    content = encoded(PIXELS, "PNG")
    broken = content[:33] + chunk(b"iCCP", b"name\0\0no zlib") + content[33:]
    picture = read_picture(save(tmp_path, "a.png", broken))
    assert (picture.icc, picture.notes) == (None, ("its colour profile, which is damaged, left out",))


ODD = {
    "a length that is no multiple of four": (len(SRGB) + 1).to_bytes(4, "big") + SRGB[4:] + b"\0",
    "an unknown intent": SRGB[:64] + b"\xff" * 4 + SRGB[68:],
    "an unknown space between profiles": SRGB[:20] + b"Luv " + SRGB[24:],
}


@pytest.mark.parametrize("name", ODD)
def test_a_profile_that_only_the_encoder_refuses(tmp_path: Path, name: str) -> None:
    """Whatever else a format minds is found on one pixel, before a model has run; what is kept is really there."""
    for suffix in SUFFIXES:
        fitted, notes = fit_to_file(tmp_path / f"a{suffix}", Picture(PIXELS, icc=ODD[name]), (48, 60))
        lost = [f"the colour profile left out: {suffix} cannot hold it"]
        assert notes == ([] if fitted.icc else lost)
        write_picture(tmp_path / f"a{suffix}", fitted)
        assert read_picture(tmp_path / f"a{suffix}").icc == fitted.icc
        assert (fitted.icc is None) == (suffix == ".png")


def test_a_unit_without_a_density_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x128] = 2
    for suffix in SUFFIXES:
        path = save(tmp_path, f"a{suffix}", encoded(PIXELS, FORMATS[suffix], exif=exif))
        assert read_picture(path).metadata.density is None, suffix


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_grey_does_not_take_a_profile_of_colour(tmp_path: Path, suffix: str) -> None:
    fitted, (note,) = fit_to_file(tmp_path / f"a{suffix}", Picture(PIXELS[..., :1], icc=SRGB), (48, 60))
    assert fitted.icc is None
    assert "it is for RGB and the picture is grey" in note


def test_a_description_of_colours_in_png_chunks_is_said(tmp_path: Path) -> None:
    content = encoded(PIXELS, "PNG")
    linear = content[:33] + chunk(b"gAMA", (100_000).to_bytes(4, "big")) + content[33:]
    (note,) = read_picture(save(tmp_path, "a.png", linear)).notes
    assert "description of the colours" in note
    usual = content[:33] + chunk(b"gAMA", (45455).to_bytes(4, "big")) + content[33:]
    assert read_picture(save(tmp_path, "b.png", usual)).notes == ()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_alpha_that_says_nothing_may_become_jpeg(tmp_path: Path, suffix: str) -> None:
    opaque = Picture(PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8))
    fitted, notes = fit_to_file(tmp_path / f"a{suffix}", opaque, (48, 60))
    assert (fitted.alpha, notes) == (None, [])
    write_picture(tmp_path / f"a{suffix}", opaque)
    kept, _ = fit_to_file(tmp_path / "a.png", opaque, (48, 60))
    assert kept.alpha is not None
    assert opaque.alpha is not None
    opaque.alpha[3, 4] = 254
    with pytest.raises(ValueError, match="cannot hold transparency"):
        fit_to_file(tmp_path / f"a{suffix}", opaque, (48, 60))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_density_in_damaged_exif_is_not_replaced_by_a_made_up_one(tmp_path: Path, suffix: str) -> None:
    """libvips says 25.4 or 72 dots an inch there."""
    entries = [(0x11A, 5, 1, 62), (0x11B, 5, 1, 62), (0x128, 3, 1, 2), (0x8769, 4, 1, 0xFFFFFF)]
    folder = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 4) + folder + bytes(4) + struct.pack("<II", 300, 1)
    path = save(tmp_path, f"a{suffix}", encoded(PIXELS, FORMATS[suffix], exif=b"Exif\0\0" + block))
    assert read_picture(path).metadata.density is None


def test_a_tiff_of_long_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond 2 GB is written with offsets of eight bytes: here every picture is."""
    monkeypatch.setattr("pft_bench.apps.images.files._MOST_BYTES", {".tif": 0})
    pixels = np.random.default_rng(0).integers(0, 65536, (300, 70, 3)).astype(np.uint16)
    exif = of_a_camera(1).tobytes().removeprefix(b"Exif\0\0")
    given = Picture(
        pixels, icc=SRGB, metadata=Metadata(exif=exif, xmp=XMP, iptc=IPTC, density=(10_000, 10_000))
    )
    write_picture(tmp_path / "a.tif", given)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    found = read_picture(tmp_path / "a.tif")
    assert np.array_equal(found.pixels, pixels)
    assert (found.icc, found.metadata.iptc) == (SRGB, IPTC)
    assert found.metadata.density == pytest.approx((10_000, 10_000))
    assert found.metadata.exif is not None
    assert b"2020:01:02" in found.metadata.exif


@pytest.mark.filterwarnings("error")
def test_a_tiff_with_damaged_tags_keeps_its_pixels(tmp_path: Path) -> None:
    """Nothing of Pillow on the terminal either."""
    content = bytearray(photograph(tmp_path, ".tif").read_bytes())
    order = "<" if content[:2] == b"II" else ">"
    first = struct.unpack_from(order + "I", content, 4)[0]
    for number in range(struct.unpack_from(order + "H", content, first)[0]):
        entry = first + 2 + 12 * number
        if (
            struct.unpack_from(order + "H", content, entry)[0] == 0x10F
        ):  # the maker's name lies beyond the end
            struct.pack_into(order + "I", content, entry + 8, 10**8)
    found = read_picture(save(tmp_path, "a.tif", bytes(content)))
    assert found.size_hw == (30, 24)
    assert found.notes == ("its metadata, which is damaged, left out",)
