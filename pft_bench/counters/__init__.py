"""What the CUDA kernels ask of a GPU, counted without one, and the time that follows: a prediction, not a measurement."""

from .chips import CHIPS, Chip, chip_named
from .counted import Launch, Site
from .emulate import Work, count_launches, why_not
from .model import Prediction, predict

__all__ = [
    "CHIPS",
    "Chip",
    "Launch",
    "Prediction",
    "Site",
    "Work",
    "chip_named",
    "count_launches",
    "predict",
    "why_not",
]
