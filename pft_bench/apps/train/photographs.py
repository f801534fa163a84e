"""Pairs of crops from a folder of photographs, in an order that depends on nothing but the seed and the step."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..images import (
    READ_SUFFIXES,
    imresize,
    name_files,
    pictures_left_out,
    read_header,
    read_picture,
    rgb8,
    taken,
    walk_pictures,
)

CACHE_BYTES = 8 << 30
"""Decoded pictures that are kept; DIV2K fits."""


class Photographs:
    """High-resolution pictures of a folder (and the folders in it), and their bicubic reductions by `scale`.

    Pictures are decoded when a crop first needs them. Raises ValueError where the folder holds no picture, one that
    cannot be read, or one smaller than a crop of `patch` low-resolution pixels.
    """

    def __init__(self, folder: Path, scale: int, patch: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.scale, self.patch = folder, scale, patch
        self.paths = picture_paths(folder)
        self._headers = [read_header(path) for path in self.paths]
        self.sizes = [tuple(side // scale for side in header.size_hw) for header in self._headers]
        small = [path for path, size in zip(self.paths, self.sizes, strict=True) if min(size) < patch]
        if small:
            shown = ", ".join(path.name for path in small[:3]) + (", ..." if len(small) > 3 else "")
            raise ValueError(
                f"every picture must be at least {patch * scale} pixels high and wide (--patch {patch} times the "
                f"scale {scale}), got {len(small)} smaller ones in {folder}: {shown}"
            )
        places = [(height - patch + 1) * (width - patch + 1) for height, width in self.sizes]
        # Every crop is equally likely, so that a large photograph counts for more than a small one.
        self._shares = np.cumsum(places) / sum(places)
        self._cache: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._free_bytes = cache_bytes

    def notes(self) -> list[str]:
        """What was left out or converted while reading, and in which pictures: a line each."""
        found: dict[str, list[Path]] = {}
        for path, header in zip(self.paths, self._headers, strict=True):
            for note in taken(header, eight=True):
                found.setdefault(note, []).append(path)
        converted = [f"{note}: {name_files(paths)}" for note, paths in found.items()]
        return pictures_left_out(self.folder) + converted

    def fingerprint(self) -> str:
        """Names and sizes of the pictures as a short text: a run goes on only with the pictures it began with."""
        listed = [
            f"{path.relative_to(self.folder).as_posix()} {height}x{width}"
            for path, (height, width) in zip(self.paths, self.sizes, strict=True)
        ]
        return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()[:16]

    def batch(self, seed: int, step: int, places: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Crops at `places` of the global batch of `step`: ([n, 3, patch, patch], [n, 3, patch*scale, ...]) in 0..1.

        A function of its arguments alone: however many processes share the batch, they see the same crops.
        """
        pairs = [self._crop(np.random.default_rng((seed, step, place))) for place in places]
        low, high = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return low.float() / 255, high.float() / 255

    def _crop(self, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        which = min(int(np.searchsorted(self._shares, generator.random(), "right")), len(self.paths) - 1)
        height, width = self.sizes[which]
        y = int(generator.integers(height - self.patch + 1))
        x = int(generator.integers(width - self.patch + 1))
        turn = int(generator.integers(8))
        low, high = self._pair(which)
        return (
            _turned(low[:, y : y + self.patch, x : x + self.patch], turn),
            _turned(
                high[
                    :,
                    y * self.scale : (y + self.patch) * self.scale,
                    x * self.scale : (x + self.patch) * self.scale,
                ],
                turn,
            ),
        )

    def _pair(self, which: int) -> tuple[Tensor, Tensor]:
        if which in self._cache:
            self._cache.move_to_end(which)
            return self._cache[which]
        high = read_rgb(self.paths[which])
        height, width = (side * self.scale for side in self.sizes[which])
        pair = reduced(high[:, :height, :width], self.scale), high[:, :height, :width]
        self._free_bytes -= sum(part.numel() for part in pair)
        self._cache[which] = pair
        while self._free_bytes < 0 and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._free_bytes += sum(part.numel() for part in dropped)
        return pair


def picture_paths(folder: Path) -> list[Path]:
    """All pictures below `folder`, sorted by name; ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"--data must be a folder of photographs, got {folder}: there is no such folder")
    found = walk_pictures(folder)
    if not found:
        raise ValueError(
            f"--data must be a folder with pictures ({', '.join(READ_SUFFIXES)}), got {folder} without any"
        )
    return found


def read_rgb(path: Path) -> Tensor:
    """A picture as [3, h, w] uint8, upright, without its alpha."""
    pixels = np.ascontiguousarray(rgb8(read_picture(path)).transpose(2, 0, 1))
    return torch.from_numpy(pixels)


def reduced(high: Tensor, scale: int) -> Tensor:
    """The field's low-resolution input of [3, h, w] uint8."""
    height, width = (side // scale for side in high.shape[1:])
    small = imresize(high.permute(1, 2, 0).numpy(), (height, width), 1 / scale)
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()


def _turned(x: Tensor, turn: int) -> Tensor:
    """One of the eight flips and rotations of [C, n, n]."""
    if turn & 1:
        x = x.flip(2)
    if turn & 2:
        x = x.flip(1)
    return (x.transpose(1, 2) if turn & 4 else x).contiguous()
