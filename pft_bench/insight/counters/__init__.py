"""What the CUDA kernels ask of a GPU, counted without one, and the time that follows: predicted, never measured."""

from .chips import CHIPS, Chip, chip_named
from .counted import CountedLaunch, Site
from .emulate import PRODUCTS, Work, count_launches, why_not
from .instructions import instructions_of
from .model import Prediction, predict

__all__ = [
    "CHIPS",
    "PRODUCTS",
    "Chip",
    "CountedLaunch",
    "Prediction",
    "Site",
    "Work",
    "chip_named",
    "count_launches",
    "instructions_of",
    "predict",
    "why_not",
]
