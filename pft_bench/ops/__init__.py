"""The public ops: validated, differentiable, traceable; the backend argument chooses the kernels."""

from ._library import is_eager
from .chain import ChainState
from .depthwise import depthwise_gelu_add
from .index import Index, checked_index
from .progressive_attention import compute_layers, observe_layers, progressive_attention
from .sparse import sddmm, spmm, spmm_transpose

__all__ = [
    "ChainState",
    "Index",
    "checked_index",
    "compute_layers",
    "depthwise_gelu_add",
    "is_eager",
    "observe_layers",
    "progressive_attention",
    "sddmm",
    "spmm",
    "spmm_transpose",
]
