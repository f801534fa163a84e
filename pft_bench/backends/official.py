"""The `official` backend: the published extension `smm_cuda`, where the user has built it, beside our kernels.

Nothing of it is in this project. It is called through its four functions, with what it takes: float32, an int32
index, keys transposed to [B, D, M]. A layer is put together from them as the published model does: dense products by
PyTorch, the listed ones by `smm_cuda`, selection by `torch.topk`. Its gradients of keys and values add from several
threads to one address without atomics, so a check of them may fail: that is a finding, not an error of this adapter.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..common import stages
from ..reference import Layer, index_dtype
from ..reference.attention import bias_and_region
from .base import AttentionForward, Backend

FUNCTIONS = (
    "SMM_QmK_forward_cuda",
    "SMM_QmK_backward_cuda",
    "SMM_AmV_forward_cuda",
    "SMM_AmV_backward_cuda",
)
_MOST_WINDOW_HEADS = 65535  # they are the grid's third dimension
_MOST_ENTRIES = 2**31 - 1  # offsets are 32-bit


def _load() -> ModuleType | str:
    try:
        module = importlib.import_module("smm_cuda")
    except ImportError as error:
        return f"{error}; build the extension of the published PFT code for this PyTorch and GPU"
    if hasattr(module, "__pft_bench__"):
        return "smm_cuda is pft_bench's own (pft_bench.compat), not the published extension"
    missing = [name for name in FUNCTIONS if not hasattr(module, name)]
    if missing:
        return f"the installed smm_cuda has no {', '.join(missing)}; it is not the published extension"
    return module


def _index(index: Tensor) -> Tensor:
    """The index as the kernels read it, or an error where they would read or write somewhere else."""
    if index.shape[0] > _MOST_WINDOW_HEADS:
        raise ValueError(f"smm_cuda takes at most {_MOST_WINDOW_HEADS} window-heads, got {index.shape[0]}")
    if index.numel() > _MOST_ENTRIES:
        raise ValueError(f"smm_cuda takes at most 2^31 - 1 index entries, got {index.numel()}")
    return index.int().contiguous()


class _Product(torch.autograd.Function):
    """A pair of the published functions: SMM_QmK or SMM_AmV."""

    @staticmethod
    def forward(ctx: Any, native: Any, pair: str, left: Tensor, right: Tensor, index: Tensor) -> Tensor:
        operands = left.contiguous(), right.contiguous(), _index(index)
        ctx.gradients = getattr(native, f"{pair}_backward_cuda")
        ctx.save_for_backward(*operands)
        out: Tensor = getattr(native, f"{pair}_forward_cuda")(*operands)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        left, right = ctx.gradients(grads[0].contiguous(), *ctx.saved_tensors)
        return None, None, left, right, None


class OfficialBackend(Backend):
    """The published kernels, float32, as they are."""

    name = "official"
    summary = "the published smm_cuda extension: float32; its gradients of keys and values race"
    dtypes = frozenset({torch.float32})
    devices = frozenset({"cuda"})
    composite = True

    def __init__(self) -> None:
        self._native: Any = _load()

    def available(self) -> str | None:
        """None where `smm_cuda` can be imported and torch sees a GPU."""
        if isinstance(self._native, str):
            return self._native
        if not torch.cuda.is_available():
            return "smm_cuda is installed, but this torch sees no CUDA device"
        return None

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """`SMM_QmK`: [B, N, K]; as many keys as queries."""
        if k.shape[1] != q.shape[1]:
            raise ValueError(f"smm_cuda takes as many keys as queries, got {k.shape[1]} and {q.shape[1]}")
        if not index.numel():
            return q.new_empty(index.shape)
        return _Product.apply(self._native, "SMM_QmK", q, k.transpose(1, 2), index)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """`SMM_AmV`: [B, N, D]."""
        if not index.numel():
            return v.new_zeros((*index.shape[:2], v.shape[-1]))
        return _Product.apply(self._native, "SMM_AmV", a, v, index)

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """What `SMM_AmV_backward` computes for v: [B, M, D]. Not differentiable again."""
        v = x.new_zeros((x.shape[0], num_keys, x.shape[-1]))
        if not index.numel():
            return v
        return self._native.SMM_AmV_backward_cuda(x.contiguous(), a.contiguous(), v, _index(index))[1]

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One layer; shapes and meaning as in `pft_bench.reference.attention`."""
        q, k, v, index = layer.q, layer.k, layer.v, layer.index
        windows_heads = q.shape[:2]
        with stages.stage("logits"):
            if index is None:
                products = (q * layer.scale) @ k.transpose(-1, -2)
            else:
                flat = self.sddmm((q * layer.scale).flatten(0, 1), k.flatten(0, 1), index.flatten(0, 1))
                products = flat.unflatten(0, windows_heads)
            z = products + bias_and_region(layer)
            if layer.logits is not None:
                z = z + layer.logits
        with stages.stage("select"):
            lse, highest = z.logsumexp(-1), z.amax(-1, keepdim=True)
            attn, kept = z.softmax(-1), None if index is None else index.long()
            if layer.selects:
                places = z.detach().topk(layer.topk, dim=-1, sorted=False).indices.sort(-1).values
                attn, z = attn.gather(-1, places), z.gather(-1, places)
                kept = places if kept is None else kept.gather(-1, places)
        with stages.stage("av"):
            if kept is None:
                out = attn @ v
            else:
                out = self.spmm(attn.flatten(0, 1), v.flatten(0, 1), kept.flatten(0, 1))
                out = out.unflatten(0, windows_heads)
        relative = z[..., :0] if kept is None else z - highest
        new_index = kept if layer.selects and kept is not None else q.new_empty((*layer.rows, 0))
        return out, new_index.to(index_dtype(layer.keys)), relative, lse
