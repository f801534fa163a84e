"""What is published of each system, and what makes it run here (classical super-resolution, x2).

Multiply-accumulates are for an output of 1280 x 720. Where no number stands, none was found in the source named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .drsformer import DRSformer
from .ipg import IPG
from .nlsn import NLSN

# The input behind an output of 1280 x 720 at x2, (height, width).
PAPER_LR_HW = (360, 640)

PFT_PAPER = "arXiv 2503.20337, tables of classical and lightweight super-resolution, x2"
SAT_TABLE = "table 1 of SAT (arXiv 2604.07994), x2"


@dataclass(frozen=True)
class Published:
    """The published numbers of one system."""

    parameters_m: float | None = None
    """Millions of parameters, to one decimal."""
    macs_t: float | None = None
    """10^12 multiply-accumulates, to two decimals."""
    exact_macs: int | None = None
    """The authors' own count to the last unit, where it is known."""
    psnr_db: tuple[float | None, ...] = ()
    """Y-PSNR on Set5, Urban100, Manga109."""
    source: str = PFT_PAPER
    """Where they stand."""


@dataclass(frozen=True)
class System:
    """One row of the comparison: a preset, a model of spandrel's, a network of ours, or published numbers alone."""

    name: str
    published: Published
    preset: str | None = None
    """A preset of this package."""
    architecture: str | None = None
    """The module and class of `spandrel.architectures` that holds the model."""
    keywords: dict[str, Any] = field(default_factory=dict)
    """The model's constructor arguments, those of its authors' classical x2 configuration."""
    network: Callable[[], nn.Module] | None = None
    """Makes the network that is written here."""
    stated_macs: Callable[[int, int], int] | None = None
    """Multiply-accumulates for an input of (height, width) by the authors' own convention, where it is known."""
    scale: int = 2
    """How many times its output is as wide as its input."""
    note: str = ""
    """Why numbers differ, with the arithmetic, or what else is to be known."""

    @property
    def runs(self) -> bool:
        """Whether it can be measured here; of the others only published numbers are shown."""
        return any((self.preset, self.architecture, self.network))

    @property
    def code(self) -> str:
        """Whose code runs: `spandrel`, or `networks` for one that is written here; "" for a preset."""
        return "spandrel" if self.architecture else "networks" if self.network else ""


_COMMON: dict[str, Any] = {
    "depths": (6,) * 6,
    "num_heads": (6,) * 6,
    "mlp_ratio": 2,
    "upscale": 2,
    "upsampler": "pixelshuffle",
}


def _atd_macs(height: int, width: int) -> int:
    """As ATD's own `flops` methods count: no padding, 3 C^2 for the last convolution, none of the head but one."""
    dim, tokens, inner, group = 210, 128, 20, 256
    layer = (
        3 * dim**2 + 2 * (2 * group * dim + dim**2) + 2 * dim * inner + tokens * dim + 4 * dim**2 + 50 * dim
    )
    pixel = 27 * dim + dim + 36 * layer + 6 * 9 * dim**2 + 3 * dim**2 + 9 * 64 * 256
    return height * width * pixel + 36 * (tokens * dim * inner + tokens * dim**2)


def _ipg_macs(height: int, width: int) -> int:
    """As IPG's own `flops` methods count: no padding, 256 links of a pixel instead of the products of all 1024.

    A layer: four projections, two products over the links, the bias of all pairs, the feed-forward part with its 3 x 3,
    two norms, the convolutional branch. A block: detail, the similarities of both graphs, 8 bisections, a convolution.
    """
    dim, links, pairs, hidden = 180, 256, 32**2, 720
    layer = (
        4 * dim**2 + 2 * links * dim + 6 * pairs + 2 * hidden * dim + 9 * hidden + 2 * dim + 9 * dim + dim**2
    )
    block = 5 * dim + 2 * pairs * dim + 2 * 8 * 9 + 9 * dim**2
    return height * width * (27 * dim + dim + 36 * layer + 6 * block + 3 * dim**2 + 9 * 64 * 256)


SYSTEMS = (
    System(
        "SwinIR",
        Published(11.8, 3.04, psnr_db=(38.42, 33.81, 39.92)),
        architecture="SwinIR",
        keywords=_COMMON | {"embed_dim": 180, "window_size": 8},
        note="3.04 T is 4 x 0.76 T, its count at x4 for the same output. At x4 a pixel of the input takes "
        "13,075,308 MACs and not 12,464,748: a second upsampling convolution (589,824), 16 pixels of output "
        "instead of 4 (+20,736). 4 x 57,600 x 13,075,308 = 3.01 T; with the 74 layer norms at 5 operations a "
        "value (+66,600) it is 3.03 T.",
    ),
    System(
        "HAT",
        Published(20.6, 5.81, psnr_db=(38.63, 34.45, 40.26)),
        architecture="HAT",
        keywords=_COMMON | {"embed_dim": 180, "window_size": 16},
        note="Windows of 16 pad 360 rows to 368, which is counted here: 5.829 T x 360 / 368 = 5.70 T without.",
    ),
    System(
        "ATD",
        Published(20.1, 6.07, psnr_db=(38.61, 34.70, 40.37)),
        architecture="ATD",
        keywords=_COMMON
        | {"embed_dim": 210, "window_size": 16, "num_tokens": 128, "reducted_dim": 20, "category_size": 256},
        stated_macs=_atd_macs,
        note="6.07 T is what its `flops` methods count, 26,345,922 a pixel. 6.473 T run (+6.6%): windows pad 360 "
        "rows to 368 (x 1.0222), and uncounted are the dictionary's refinement in 30 layers (30 x 128 x 210 = "
        "806,400 a pixel), two thirds of the last convolution (264,600) and two convolutions of the head "
        "(127,872); counted too much are 36 x (210 - 128) x 20 and a norm (59,250). 230,400 x 27,485,544 x "
        "368 / 360 = 6.473 T.",
    ),
    System("PFT", Published(19.6, 5.03, 5_029_525_094_400, (38.68, 34.90, 40.49)), preset="classical_x2"),
    System("PFT light", Published(0.78, 0.28, 278_038_425_600), preset="light_x2"),
    System(
        "IPG",
        Published(18.1, 5.35, psnr_db=(38.61, 34.48, 40.24), source=SAT_TABLE),
        network=IPG,
        stated_macs=_ipg_macs,
        note="By its `flops` methods, with the convolutional branch: 230,400 x 23,224,104. They count 256 links of "
        "a pixel; what runs are the products of all 1024, masked, and rows padded to 384.",
    ),
    System(
        "NLSN",
        Published(psnr_db=(38.34, 33.42, 39.59), source="NLSN (CVPR 2021), x2"),
        network=NLSN,
        note="No count of parameters or MACs was found in its repository. 41,796,163 follow from the released "
        "layers: those of EDSR (40,729,603) and 5 x 213,312 for the attention.",
    ),
    System(
        "DRSformer",
        Published(source="DRSformer (CVPR 2023): deraining, no super-resolution"),
        network=DRSformer,
        scale=1,
        note="It removes rain: the output has the input's size, here 640x360. No count of parameters was found in "
        "its repository. Its four maps are added before they meet the values, which is one product instead of "
        "four.",
    ),
    System(
        "SST",
        Published(
            psnr_db=(None, 35.63, None), source="SST-L+ in the abstract and figure 1 of arXiv 2603.06738"
        ),
        note="More training data than the other rows: with it PFT has 35.24 dB in the same figure, and a GPU takes "
        "645 ms and 2989 MB instead of PFT's 1921 ms and 28869 MB. No count of its parameters or MACs was "
        "found. Its attention, on PFT's weights: pft-bench run --level model --attention "
        "dense,pfa,rank-factorized.",
    ),
    System(
        "SAT",
        Published(19.4, 3.64, psnr_db=(38.74, 34.92, 40.70), source=SAT_TABLE),
        note="Queries of all pixels meet keys and values merged to 3% as many tokens.",
    ),
)
