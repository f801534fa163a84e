"""What the paper says of each system (arXiv 2503.20337: tables of classical and lightweight super-resolution, x2).

Multiply-accumulates are for an output of 1280 x 720. Where no number stands, the paper gives none, or none is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The input behind an output of 1280 x 720 at x2, (height, width).
PAPER_LR_HW = (360, 640)


@dataclass(frozen=True)
class Published:
    """The paper's numbers of one system."""

    parameters_m: float | None = None
    """Millions of parameters, to one decimal."""
    macs_t: float | None = None
    """10^12 multiply-accumulates, to two decimals."""
    exact_macs: int | None = None
    """The authors' own count to the last unit, where it is known."""
    psnr_db: tuple[float, ...] = ()
    """Y-PSNR on Set5, Urban100, Manga109."""


@dataclass(frozen=True)
class System:
    """One row of the comparison."""

    name: str
    published: Published
    preset: str | None = None
    """A preset of this package."""
    architecture: str | None = None
    """The module and class of `spandrel.architectures` that holds the model."""
    keywords: dict[str, Any] = field(default_factory=dict)
    """The model's constructor arguments, those of its authors' classical x2 configuration."""
    shown: str = ""
    """What this package shows of a system that it does not run."""


_COMMON: dict[str, Any] = {
    "depths": (6,) * 6,
    "num_heads": (6,) * 6,
    "mlp_ratio": 2,
    "upscale": 2,
    "upsampler": "pixelshuffle",
}

SYSTEMS = (
    System(
        "SwinIR",
        Published(11.8, 3.04, psnr_db=(38.42, 33.81, 39.92)),
        architecture="SwinIR",
        keywords=_COMMON | {"embed_dim": 180, "window_size": 8},
    ),
    System(
        "HAT",
        Published(20.6, 5.81, psnr_db=(38.63, 34.45, 40.26)),
        architecture="HAT",
        keywords=_COMMON | {"embed_dim": 180, "window_size": 16},
    ),
    System(
        "ATD",
        Published(20.1, 6.07, psnr_db=(38.61, 34.70, 40.37)),
        architecture="ATD",
        keywords=_COMMON
        | {"embed_dim": 210, "window_size": 16, "num_tokens": 128, "reducted_dim": 20, "category_size": 256},
    ),
    System(
        "PFT",
        Published(19.6, 5.03, 5_029_525_094_400, (38.68, 34.90, 40.49)),
        preset="classical_x2",
    ),
    System("PFT light", Published(0.78, 0.28, 278_038_425_600), preset="light_x2"),
    System(
        "IPG",
        Published(),
        shown="nothing: it replaces attention in windows by graphs of pixels, and spandrel does not have it",
    ),
    System(
        "NLSA",
        Published(),
        shown="its choice of keys, inside PFT: pft-bench run --attention hashed",
    ),
    System(
        "DRSformer",
        Published(),
        shown="its choice of keys, inside PFT: pft-bench run --attention compute-then-select",
    ),
)
