"""The specification: every op in plain PyTorch, readable before fast, on any device and in any float dtype."""

from .attention import attention, bias_and_region, index_dtype, kept_positions, relative_position
from .layer import Layer, window_side
from .sparse import accumulation_dtype, sddmm, spmm, spmm_transpose

__all__ = [
    "Layer",
    "accumulation_dtype",
    "attention",
    "bias_and_region",
    "index_dtype",
    "kept_positions",
    "relative_position",
    "sddmm",
    "spmm",
    "spmm_transpose",
    "window_side",
]
