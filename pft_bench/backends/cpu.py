"""The `cpu` backend: hand-written kernels (kernels/cpu) for AVX-512, AVX2 or neither, chosen at run time.

They take float32, bfloat16 and float16, and compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import stages
from ..common.native import load_native
from ..reference import Layer, window_side
from .base import (
    AttentionBackward,
    AttentionForward,
    Backend,
    BadIndex,
    LayerShape,
    Maybe,
    checks_index,
    empty,
    empty_gradients,
    empty_outputs,
)

# After torch: its OpenMP library then serves the kernels too, and there is one pool of threads.
try:
    _cpu: Any = load_native("_cpu")
    _cpu.isa()
    _reason: str | None = None
except (ImportError, RuntimeError) as error:
    _reason = (
        f"{error}; unset PFT_CPU_ISA or name an instruction set this processor has"
        if isinstance(error, RuntimeError)
        else f"the compiled module does not load ({error}); install again from the source folder: pip install -e ."
    )

_CPU = torch.device("cpu")
_F32 = torch.float32
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types as the compiled module numbers them (pft/cpu.h)."""


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strided(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.stride()


def _index(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 4) if tensor is None or tensor.numel() == 0 else (tensor.data_ptr(), tensor.element_size())


def _empty_like(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else empty(tensor.shape, _F32, _CPU)


def _workspace(bytes_needed: int) -> Tensor:
    """Memory from torch's allocator, so that it shows in memory profiles and tests can poison it."""
    return empty((bytes_needed,), torch.uint8, _CPU)


def _over_index(
    op: str,
    left: Tensor,
    right: Tensor | None,
    index: Tensor,
    matrix: Sequence[int],
    out: Tensor,
    checked: bool = True,
) -> Tensor:
    """Run `op` of PFT_CPU_SPARSE_OPS (pft/cpu.h) over `index` [B, N, K]; `matrix` is (M, D) of what it points into."""
    batch, queries, kept = index.shape
    keys, dim = matrix
    sizes = (batch, queries, keys, dim, kept)
    threads = torch.get_num_threads()
    element = _ELEMENTS[left.dtype]
    workspace = _workspace(_cpu.sparse_workspace_bytes(sizes, threads, element))
    good = getattr(_cpu, op)(
        _strided(left), None if right is None else _strided(right), index.data_ptr(), index.element_size(),
        out.data_ptr(), sizes, workspace.data_ptr(), workspace.numel(), threads, element, checked,
    )  # fmt: skip
    if not good:
        raise BadIndex
    return out


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _inputs(layer: Layer) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    """Bias, region, index and logits, maybe copies, to be held while a kernel runs; the layer as kernels take it."""
    bias, region, index, logits = tensors = _contiguous(layer.bias, layer.region, layer.index, layer.logits)
    return tensors, (
        layer.sizes, layer.scale, layer.region_penalty, _strided(layer.q), _strided(layer.k), _strided(layer.v),
        _address(bias), _address(region), _index(index), _address(logits),
    )  # fmt: skip


class CpuBackend(Backend):
    """One thread owns a window-head, so results do not depend on the number of threads (torch.get_num_threads())."""

    name = "cpu"
    dtypes = frozenset(_ELEMENTS)
    devices = frozenset({"cpu"})
    same_bits = True

    @property
    def summary(self) -> str:  # type: ignore[override]
        """What it is, with the instruction set in use."""
        return f"C++ kernels, {_cpu.isa()}, {torch.get_num_threads()} threads"

    def available(self) -> str | None:
        """None once the compiled module can be used."""
        return _reason

    @checks_index
    def sddmm(self, q: Tensor, k: Tensor, index: Tensor, checked: bool = True) -> Tensor:
        """[B, N, K] from q [B, N, D], k [B, M, D], index [B, N, K]."""
        out = empty(index.shape, q.dtype, _CPU)
        return _over_index("sddmm", q, k, index, k.shape[1:], out, checked)

    @checks_index
    def spmm(self, a: Tensor, v: Tensor, index: Tensor, checked: bool = True) -> Tensor:
        """[B, N, D] from a and index [B, N, K], v [B, M, D]."""
        out = empty((*a.shape[:2], v.shape[2]), a.dtype, _CPU)
        return _over_index("spmm", a, v, index, v.shape[1:], out, checked)

    @checks_index
    def spmm_transpose(
        self, a: Tensor, x: Tensor, index: Tensor, num_keys: int, checked: bool = True
    ) -> Tensor:
        """[B, M, D] from a and index [B, N, K], x [B, N, D]."""
        matrix = (num_keys, x.shape[2])
        out = empty((a.shape[0], *matrix), a.dtype, _CPU)
        return _over_index("spmm_transpose", a, x, index, matrix, out, checked)

    def row_reads(self, rows: Tensor, index: Tensor) -> Tensor:
        """[B, D]: every row of `rows` [B, M, D] that `index` [B, N, K] names, added up.

        No op: the reads of the sparse products and nothing else, which no kernel that takes row after row beats.
        """
        out = empty((rows.shape[0], rows.shape[2]), rows.dtype, _CPU)
        return _over_index("row_reads", rows, None, index, rows.shape[1:], out)

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One layer, as `pft_bench.reference.attention` specifies it: out, new index, new logits, logsumexp."""
        threads = torch.get_num_threads()
        out, new_index, new_logits, lse = empty_outputs(layer)
        _held, given = _inputs(layer)
        sparse = layer.index is not None
        workspace = _workspace(_cpu.attention_forward_workspace_bytes(given[0], sparse, threads))
        with stages.stage("attention"):
            seconds = _cpu.attention_forward(
                given, _strided(out), _index(new_index), _address(new_logits), lse.data_ptr(), stages.active(),
                workspace.data_ptr(), workspace.numel(), threads, _ELEMENTS[layer.q.dtype],
            )  # fmt: skip
        if seconds is not None:
            stages.split("attention", dict(zip(("logits", "select", "av"), seconds, strict=True)))
        return out, new_index, new_logits, lse

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Maybe, new_index: Tensor, out: Tensor, lse: Tensor
    ) -> AttentionBackward:
        """Gradients of q, k, v, bias and the earlier logits (the last two None where there were none)."""
        threads = torch.get_num_threads()
        grad_q, grad_k, grad_v = empty_gradients(layer)
        (bias, _region, _candidates, logits), given = _inputs(layer)
        grad_bias, grad_logits_prev = _empty_like(bias), _empty_like(logits)
        if grad_logits is not None and grad_logits.numel() == 0:
            grad_logits = None
        grad_logits, kept, lse_ = _contiguous(grad_logits, new_index, lse)
        grad_out, out = (t if t.stride(-1) == 1 else t.contiguous() for t in (grad_out, out))
        sparse = layer.index is not None
        workspace = _workspace(_cpu.attention_backward_workspace_bytes(given[0], sparse, threads))
        with stages.stage("attention"):
            _cpu.attention_backward(
                given, _strided(grad_out), _address(grad_logits), _index(kept), _strided(out), _address(lse_),
                _strided(grad_q), _strided(grad_k), _strided(grad_v), _address(grad_bias),
                _address(grad_logits_prev), workspace.data_ptr(), workspace.numel(), threads,
                _ELEMENTS[layer.q.dtype],
            )  # fmt: skip
        return grad_q, grad_k, grad_v, grad_bias, grad_logits_prev

    def depthwise_gelu_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int
    ) -> Tensor:
        """[B, rows, w, C] from images x [B, h, w, C], in one pass; kernels beyond 15x15 by PyTorch's operators."""
        channels, _, kernel, _ = weight.shape
        if kernel > _cpu.MAX_DEPTHWISE_KERNEL:
            return super().depthwise_gelu_add(x, weight, bias, residual, first_row)
        sizes = (*x.shape, kernel, first_row, residual.shape[1])
        threads = torch.get_num_threads()
        workspace = _workspace(_cpu.depthwise_workspace_bytes(sizes, threads))
        out = empty(residual.shape, residual.dtype, _CPU)
        by_tap = weight.reshape(channels, -1).t().to(_F32).contiguous()
        bias = None if bias is None else bias.to(_F32)
        _cpu.depthwise_gelu_add(
            _strided(x), by_tap.data_ptr(), _address(bias), _strided(residual), _strided(out), sizes,
            workspace.data_ptr(), workspace.numel(), threads, _ELEMENTS[x.dtype],
        )  # fmt: skip
        return out

    def attention_work_bytes(self, shape: LayerShape, threads: int) -> int:
        """Work buffers of the threads."""
        windows, heads, tokens, dim_qk, dim_v, candidates, kept = shape
        # A layer with regions, the larger case, for one pattern; how many there are does not matter.
        sizes: Any = (windows, heads, tokens, tokens, dim_qk, dim_v, candidates, kept, window_side(tokens), 1)
        bytes_needed: int = _cpu.attention_forward_workspace_bytes(sizes, candidates < tokens, threads)
        return bytes_needed
