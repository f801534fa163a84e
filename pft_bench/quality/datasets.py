"""The field's test sets in the folder layouts in which they are passed around."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..images import OTHER_SUFFIXES, SUFFIXES, PictureError, imresize, read_picture

Array = np.ndarray[Any, Any]

KNOWN = ("Set5", "Set14", "B100", "BSD100", "BSDS100", "Urban100", "Manga109")
"""The usual order of tables; other sets follow by name."""
_HIGH = ("HR", "GT", "GTmod12", "GTmod{scale}", "original", "image_SRF_{scale}")
_LOW = ("LR_bicubic/X{scale}", "LR_bicubic_X{scale}", "LRbicx{scale}", "LR/X{scale}", "image_SRF_{scale}")
_PICTURES = (*SUFFIXES, ".bmp")
_OTHERS = tuple(suffix for suffix in OTHER_SUFFIXES if suffix not in _PICTURES)


@dataclass(frozen=True)
class Pair:
    """A high-resolution image and its low-resolution one; None: to be made by bicubic reduction."""

    name: str
    high: Path
    low: Path | None


@dataclass(frozen=True)
class Dataset:
    """A test set at one scale."""

    name: str
    pairs: tuple[Pair, ...]
    left_out: tuple[Path, ...] = ()
    """Pictures beside them, of formats that are not read here."""


def find_datasets(folder: Path, scale: int) -> list[Dataset]:
    """The test set that `folder` is, or those that its subfolders are.

    A set has its high-resolution images in HR, GTmod12, GT, original or image_SRF_N (names NAME_SRF_N_HR), or directly,
    and its low-resolution ones, if any, in LR_bicubic/XN, LRbicxN or LR/XN under the same names or NAMExN.

    Raises:
        ValueError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        what = "that is a file" if folder.exists() else "there is no such folder"
        raise ValueError(f"--data must be a folder, got {folder}: {what}")
    own = _dataset(folder, scale)
    found = [own] if own else [_dataset(path, scale) for path in folder.iterdir() if path.is_dir()]
    datasets = sorted((dataset for dataset in found if dataset), key=_place)
    if not datasets:
        raise ValueError(
            f"--data must hold images, or test sets with {', '.join(_HIGH).format(scale=scale)} in them, got {folder}"
        )
    return datasets


def _place(dataset: Dataset) -> tuple[int, str]:
    return (KNOWN.index(dataset.name) if dataset.name in KNOWN else len(KNOWN), dataset.name)


def _dataset(folder: Path, scale: int) -> Dataset | None:
    places = [_inside(folder, name.format(scale=scale)) for name in (*_HIGH, ".")]
    places = [inner for place in places if place for inner in (place, _inside(place, f"X{scale}"))]
    for place in places:
        highs = {stem: path for stem, path in _stems(place, scale, "HR") if stem}
        if highs:
            break
    else:
        return None
    assert place is not None
    left_out = tuple(path for path in sorted(place.iterdir()) if path.suffix.lower() in _OTHERS)
    lows: dict[str, Path] = {}
    for name in _LOW:
        lows |= dict(_stems(_inside(folder, name.format(scale=scale)), scale, "LR"))
    pairs = tuple(Pair(stem, highs[stem], lows.get(stem)) for stem in sorted(highs))
    return Dataset(folder.resolve().name, pairs, left_out)


def _inside(folder: Path, name: str) -> Path | None:
    """The subfolder `name`, whatever its case."""
    for part in Path(name).parts:
        matching = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() == part.lower()]
        if not matching:
            return None
        folder = matching[0]
    return folder


def _stems(folder: Path | None, scale: int, kind: str) -> Iterable[tuple[str, Path]]:
    """(name without the marks of scale and kind, file) of the images in a folder."""
    if folder is None:
        return
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _PICTURES or not path.is_file() or path.name.startswith("."):
            continue
        stem = path.stem
        marked = re.fullmatch(r"(.+)_SRF_(\d+)_(HR|LR)", stem)
        if marked:
            if int(marked[2]) == scale and marked[3] == kind:
                yield marked[1], path
        else:
            yield (re.sub(rf"_?x{scale}$", "", stem, flags=re.IGNORECASE) if kind == "LR" else stem), path


def load_pair(pair: Pair, scale: int) -> tuple[Array, Array]:
    """The images as (low [h, w, 3], high [h*scale, w*scale, 3]), uint8; the high one is cropped to fit.

    Raises:
        PictureError: one cannot be read, has 16 bits, or their sizes do not belong together.
    """
    high = _rgb(pair.high)
    height, width = (side // scale for side in high.shape[:2])
    if pair.low is not None:
        low = _rgb(pair.low)
        if low.shape[:2] != (height, width):
            raise PictureError(
                f"{pair.low} must be {width}x{height}, as {pair.high.name} ({high.shape[1]}x{high.shape[0]}) at scale "
                f"{scale}, got {low.shape[1]}x{low.shape[0]}"
            )
    if not height or not width:
        raise PictureError(f"{pair.high} must have at least {scale} pixels a side")
    high = np.ascontiguousarray(high[: height * scale, : width * scale])
    if pair.low is None:
        low = imresize(high, (height, width), 1 / scale)
    return low, high


def _rgb(path: Path) -> Array:
    if path.suffix.lower() == ".bmp":
        return _bitmap(path)
    pixels = read_picture(path).pixels
    if pixels.dtype != np.uint8:
        raise PictureError(f"{path} must have 8 bits a channel, as the field's metrics do, got 16")
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def _bitmap(path: Path) -> Array:
    """Set5 and Set14 were first passed around as .bmp, which libvips' usual build does not read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} must be a picture that can be read") from error
