"""Progressive focused attention: sparse kernels, their proof and their measurement, and the PFT model."""

from .backends import BackendInfo, BackendUnavailable, backends
from .ops import ChainState, progressive_attention, sddmm, spmm, spmm_transpose

__version__ = "0.1.0"

__all__ = [
    "BackendInfo",
    "BackendUnavailable",
    "ChainState",
    "backends",
    "progressive_attention",
    "sddmm",
    "spmm",
    "spmm_transpose",
]
