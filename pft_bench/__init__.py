"""Progressive focused attention: sparse kernels, their proof and their measurement, and the PFT model."""

from . import backends
from .backends import BackendInfo, BackendUnavailable
from .model import PFT, load
from .ops import ChainState, progressive_attention, sddmm, spmm, spmm_transpose

__version__ = "0.1.0"

__all__ = [
    "PFT",
    "BackendInfo",
    "BackendUnavailable",
    "ChainState",
    "backends",
    "load",
    "progressive_attention",
    "sddmm",
    "spmm",
    "spmm_transpose",
]
