"""The public ops: validated, differentiable, traceable; the backend argument chooses the kernels."""

from .index import checked_index
from .progressive_attention import ChainState, compute_layers, observe_layers, progressive_attention
from .sparse import sddmm, spmm, spmm_transpose

__all__ = [
    "ChainState",
    "checked_index",
    "compute_layers",
    "observe_layers",
    "progressive_attention",
    "sddmm",
    "spmm",
    "spmm_transpose",
]
