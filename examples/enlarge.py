"""Enlarge a picture in Python: load weights, compute in tiles where memory asks for it.

    python examples/enlarge.py photo.jpg large.png [WEIGHTS]

`small_x2` comes with the package; the published checkpoints are named by their file. `pft-bench upscale` does the same
and keeps profiles, metadata, alpha and 16 bits, too.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image

import pft_bench
from pft_bench.model.tiles import upscale


def main(source: str, target: str, weights: str = "small_x2") -> None:
    """Read, enlarge, write."""
    model = pft_bench.load(weights).eval()
    picture = np.asarray(Image.open(source).convert("RGB"))
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255  # [1, 3, h, w] in 0..1
    large = upscale(
        model, image
    )  # the whole picture where memory suffices, else overlapping tiles; tile= decides
    pixels = (large[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(target)
    print(f"{source} {picture.shape[1]}x{picture.shape[0]} -> {target} {pixels.shape[1]}x{pixels.shape[0]}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
