"""The three sparse products. Each one's gradients are the other two, so they differentiate any number of times.

Shapes: q, x [B, N, D]; k, v [B, M, D]; a, index [B, N, K], for B window-heads, N queries, M keys and K kept
entries a row (the ELL format: distinct keys, any order).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import get, require
from ._library import define, full_precision, unit_last_stride
from .index import checked_index
from .validate import (
    require_count,
    require_index,
    require_nonempty,
    require_same,
    require_shape,
    require_tensor,
)


def sddmm(q: Tensor, k: Tensor, index: Tensor, backend: str = "auto") -> Tensor:
    """Sampled dense-dense product (SDDMM): only the products of queries with the keys that `index` names.

    ``out[b,i,t] = sum_e q[b,i,e] * k[b, index[b,i,t], e]``

    Args:
        q: queries [B, N, D], floating point, any strides.
        k: keys [B, M, D], dtype and device of `q`.
        index: kept keys [B, N, K], int16/int32/int64, distinct within a row.
        backend: a name from `pft_bench.backends()`, or "auto".

    Returns:
        [B, N, K] in the dtype of `q`, accumulated in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or values.
        pft_bench.BackendUnavailable: the backend cannot run here; the message says why.
    """
    require_tensor("q", q, "[B, N, D]")
    require_tensor("k", k, "[B, M, D]")
    require_index(index, "[B, N, K]")
    require_same("k", k, "q", q)
    require_same("index", index, "q", q, dtype=False)
    require_shape("k", k, (q.shape[0], k.shape[1], q.shape[2]), "[B, M, D]")
    require_shape("index", index, (*q.shape[:2], index.shape[2]), "[B, N, K]")
    require_nonempty("the head_dim D of q", q.shape[2], q)
    chosen = require(backend, q.device, q.dtype)
    index = checked_index(index, k.shape[1])
    if chosen.composite:
        with full_precision(q):
            return chosen.sddmm(q, k, index)
    return torch.ops.pft_bench.sddmm(q, k, index, chosen.name)


def spmm(a: Tensor, v: Tensor, index: Tensor, backend: str = "auto") -> Tensor:
    """Sparse-dense product (SpMM): the rows of `v` that `index` names, weighted with `a` and summed.

    ``out[b,i,:] = sum_t a[b,i,t] * v[b, index[b,i,t], :]``

    Args:
        a: weights [B, N, K], floating point, any strides.
        v: values [B, M, D], dtype and device of `a`.
        index: kept keys [B, N, K], int16/int32/int64, distinct within a row.
        backend: a name from `pft_bench.backends()`, or "auto".

    Returns:
        [B, N, D] in the dtype of `a`, accumulated in float32 (float64 for float64). Raises as `sddmm` does.
    """
    require_tensor("a", a, "[B, N, K]")
    require_tensor("v", v, "[B, M, D]")
    require_index(index, "[B, N, K]")
    require_same("v", v, "a", a)
    require_same("index", index, "a", a, dtype=False)
    require_shape("v", v, (a.shape[0], *v.shape[1:]), "[B, M, D]")
    require_shape("index", index, a.shape, "[B, N, K]")
    require_nonempty("the head_dim D of v", v.shape[2], v)
    chosen = require(backend, a.device, a.dtype)
    index = checked_index(index, v.shape[1])
    if chosen.composite:
        with full_precision(a):
            return chosen.spmm(a, v, index)
    return torch.ops.pft_bench.spmm(a, v, index, chosen.name)


def spmm_transpose(a: Tensor, x: Tensor, index: Tensor, num_keys: int, backend: str = "auto") -> Tensor:
    """The transposed SpMM: every weighted row of `x` is added to the key that `index` names.

    ``out[b,j,:] = sum of a[b,i,t] * x[b,i,:] over (i,t) with index[b,i,t] == j``, in a fixed order, without atomics.

    Args:
        a: weights [B, N, K], floating point, any strides.
        x: rows [B, N, D], dtype and device of `a`.
        index: keys [B, N, K], int16/int32/int64, distinct within a row.
        num_keys: M, the number of keys.
        backend: a name from `pft_bench.backends()`, or "auto".

    Returns:
        [B, M, D] in the dtype of `a`, accumulated in float32 (float64 for float64). Raises as `sddmm` does.
    """
    require_tensor("a", a, "[B, N, K]")
    require_tensor("x", x, "[B, N, D]")
    require_index(index, "[B, N, K]")
    require_count("num_keys", num_keys, 0)
    require_same("x", x, "a", a)
    require_same("index", index, "a", a, dtype=False)
    require_shape("x", x, (*a.shape[:2], x.shape[2]), "[B, N, D]")
    require_shape("index", index, a.shape, "[B, N, K]")
    require_nonempty("the head_dim D of x", x.shape[2], x)
    chosen = require(backend, a.device, a.dtype)
    index = checked_index(index, num_keys)
    if chosen.composite:
        with full_precision(a):
            return chosen.spmm_transpose(a, x, index, num_keys)
    return torch.ops.pft_bench.spmm_transpose(a, x, index, num_keys, chosen.name)


def _run_sddmm(q: Tensor, k: Tensor, index: Tensor, backend: str) -> Tensor:
    return get(backend).sddmm(unit_last_stride(q), unit_last_stride(k), index)


def _run_spmm(a: Tensor, v: Tensor, index: Tensor, backend: str) -> Tensor:
    return get(backend).spmm(unit_last_stride(a), unit_last_stride(v), index)


def _run_spmm_transpose(a: Tensor, x: Tensor, index: Tensor, num_keys: int, backend: str) -> Tensor:
    return get(backend).spmm_transpose(unit_last_stride(a), unit_last_stride(x), index, num_keys)


define("sddmm(Tensor q, Tensor k, Tensor index, str backend) -> Tensor", _run_sddmm)
define("spmm(Tensor a, Tensor v, Tensor index, str backend) -> Tensor", _run_spmm)
define(
    "spmm_transpose(Tensor a, Tensor x, Tensor index, int num_keys, str backend) -> Tensor",
    _run_spmm_transpose,
)


@torch.library.register_fake("pft_bench::sddmm")
def _(q: Tensor, k: Tensor, index: Tensor, backend: str) -> Tensor:
    return torch.empty(index.shape, dtype=q.dtype, device=q.device)


@torch.library.register_fake("pft_bench::spmm")
def _(a: Tensor, v: Tensor, index: Tensor, backend: str) -> Tensor:
    return torch.empty((*index.shape[:2], v.shape[2]), dtype=a.dtype, device=a.device)


@torch.library.register_fake("pft_bench::spmm_transpose")
def _(a: Tensor, x: Tensor, index: Tensor, num_keys: int, backend: str) -> Tensor:
    return torch.empty((index.shape[0], num_keys, x.shape[2]), dtype=a.dtype, device=a.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:3])


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, index = ctx.saved_tensors
    ops = torch.ops.pft_bench
    grad_q = ops.spmm(grad, k, index, ctx.backend) if ctx.needs_input_grad[0] else None
    grad_k = ops.spmm_transpose(grad, q, index, k.shape[1], ctx.backend) if ctx.needs_input_grad[1] else None
    return grad_q, grad_k, None, None


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, v, index = ctx.saved_tensors
    ops = torch.ops.pft_bench
    grad_a = ops.sddmm(grad, v, index, ctx.backend) if ctx.needs_input_grad[0] else None
    grad_v = ops.spmm_transpose(a, grad, index, v.shape[1], ctx.backend) if ctx.needs_input_grad[1] else None
    return grad_a, grad_v, None, None


def _spmm_transpose_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, x, index = ctx.saved_tensors
    ops = torch.ops.pft_bench
    grad_a = ops.sddmm(x, grad, index, ctx.backend) if ctx.needs_input_grad[0] else None
    grad_x = ops.spmm(a, grad, index, ctx.backend) if ctx.needs_input_grad[1] else None
    return grad_a, grad_x, None, None, None


torch.library.register_autograd("pft_bench::sddmm", _sddmm_backward, setup_context=_save)
torch.library.register_autograd("pft_bench::spmm", _spmm_backward, setup_context=_save)
torch.library.register_autograd("pft_bench::spmm_transpose", _spmm_transpose_backward, setup_context=_save)


@register_flop_formula(
    [torch.ops.pft_bench.sddmm, torch.ops.pft_bench.spmm, torch.ops.pft_bench.spmm_transpose]
)
def sparse_product_flops(
    first_shape: torch.Size, second_shape: torch.Size, index_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """2 * B * N * K * D: a multiply and an add for every kept entry and channel."""
    batch, queries, kept = index_shape
    return 2 * batch * queries * kept * int(second_shape[2])
