"""The field's test sets in the folder layouts in which they are passed around."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..images import (
    PictureError,
    imresize,
    is_hidden,
    list_pictures,
    name_files,
    pictures_left_out,
    read_picture,
    rgb8,
    taken,
)

Array = np.ndarray[Any, Any]

KNOWN = ("Set5", "Set14", "B100", "BSD100", "BSDS100", "Urban100", "Manga109")
"""The usual order of tables; other sets follow by name."""
_HIGH = ("HR", "GT", "GTmod12", "GTmod{scale}", "original", "image_SRF_{scale}")
_LOW = ("LR_bicubic/X{scale}", "LR_bicubic_X{scale}", "LRbicx{scale}", "LR/X{scale}", "image_SRF_{scale}")
_LOSSLESS_FIRST = (".png", ".tif", ".tiff", ".bmp", ".webp", ".jpg", ".jpeg")
"""Which of several files of one name is taken."""


@dataclass(frozen=True)
class ImagePair:
    """A high-resolution image and its low-resolution one; None: to be made by bicubic reduction."""

    name: str
    high: Path
    low: Path | None


@dataclass(frozen=True)
class Dataset:
    """A test set at one scale; `remarks` are lines about its files that take no part, or not as they might seem to."""

    name: str
    pairs: tuple[ImagePair, ...]
    remarks: tuple[str, ...] = ()


def find_datasets(folder: Path, scale: int) -> list[Dataset]:
    """The test set that `folder` is, or those that its subfolders are.

    A set has its high-resolution images in HR, GTmod12, GT, original or image_SRF_N (names NAME_SRF_N_HR), or directly,
    and its low-resolution ones, if any, in LR_bicubic/XN, LRbicxN or LR/XN under the same names or NAMExN.

    Raises:
        ValueError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        what = "that is a file" if folder.exists() else "there is no such folder"
        raise ValueError(
            f"--data must be a folder, got {folder}: {what} (a test set has its pictures in HR, in GT or directly, and "
            f"low-resolution ones, if any, in LR_bicubic/X{scale})"
        )
    own = _dataset(folder, scale)
    inner = [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path)]
    found = [own] if own else [_dataset(path, scale) for path in inner]
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
        highs, other_highs = _by_name(_stems(place, scale, "HR"))
        if highs:
            break
    else:
        return None
    assert place is not None
    low_places = [_inside(folder, name.format(scale=scale)) for name in _LOW]
    lows, other_lows = _by_name(pair for low in low_places for pair in _stems(low, scale, "LR"))
    pairs = tuple(ImagePair(stem, highs[stem], lows.get(stem)) for stem in sorted(highs))
    remarks = _remarks(
        (
            ("left out, as another picture has the same name", other_highs + other_lows),
            (
                "low-resolution pictures left out, as there is no high-resolution one of their name",
                [path for stem, path in lows.items() if stem not in highs],
            ),
            (
                "made by bicubic reduction, as there is no low-resolution picture beside the others'",
                [pair.high for pair in pairs if pair.low is None] if lows else [],
            ),
        )
    )
    folders = [place, *(low for low in low_places if low is not None and low != place)]
    left_out = [line for part in folders for line in pictures_left_out(part, deep=False)]
    return Dataset(folder.resolve().name, pairs, (*left_out, *remarks))


def _remarks(found: Iterable[tuple[str, list[Path]]]) -> tuple[str, ...]:
    return tuple(f"{what}: {name_files(paths)}" for what, paths in found if paths)


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
    for path in list_pictures(folder):
        stem = path.stem
        marked = re.fullmatch(r"(.+)_SRF_(\d+)_(HR|LR)", stem)
        if marked:
            if int(marked[2]) == scale and marked[3] == kind:
                yield marked[1], path
        else:
            yield (re.sub(rf"_?x{scale}$", "", stem, flags=re.IGNORECASE) if kind == "LR" else stem), path


def _by_name(found: Iterable[tuple[str, Path]]) -> tuple[dict[str, Path], list[Path]]:
    """One file for each name, a lossless one where there are several, and the files that are not taken."""
    taken: dict[str, Path] = {}
    others = []
    for stem, path in sorted(found, key=lambda pair: _LOSSLESS_FIRST.index(pair[1].suffix.lower())):
        if stem and taken.setdefault(stem, path) != path:
            others.append(path)
    return taken, sorted(others)


def load_pair(pair: ImagePair, scale: int) -> tuple[Array, Array]:
    """The images as (low [h, w, 3], high [h*scale, w*scale, 3]), uint8; the high one is cropped to fit.

    16 bits a channel are rounded to 8, as the field's metrics take them.

    Raises:
        PictureError: one cannot be read, or their sizes do not belong together.
    """
    return load_noted(pair, scale)[:2]


def load_noted(pair: ImagePair, scale: int) -> tuple[Array, Array, list[str]]:
    """What `load_pair` gives, and notes about what was left out or converted while reading."""
    notes: list[str] = []
    high = _rgb(pair.high, notes)
    height, width = (side // scale for side in high.shape[:2])
    if pair.low is not None:
        low = _rgb(pair.low, notes)
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
    return low, high, notes


def _rgb(path: Path, notes: list[str]) -> Array:
    picture = read_picture(path)
    notes += [f"{path.name}: {note}" for note in taken(picture, eight=True)]
    return rgb8(picture)
