"""The sparse products, one window-head at a time, by gathering the rows that the index names.

Shapes: q [B, N, D], k and v [B, M, D], a and index [B, N, K]. Half precision is accumulated in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` products are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sddmm(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    """Sampled dense-dense product: ``out[b,i,t] = sum_e q[b,i,e] * k[b, index[b,i,t], e]``, [B, N, K]."""
    wide = accumulation_dtype(q.dtype)
    rows = [
        (q_b.to(wide).unsqueeze(1) * k_b.to(wide)[index_b.long()]).sum(-1)
        for q_b, k_b, index_b in zip(q, k, index, strict=True)
    ]
    return _stack(rows, index.shape, q, k).to(q.dtype)


def spmm(a: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Sparse-dense product: ``out[b,i,:] = sum_t a[b,i,t] * v[b, index[b,i,t], :]``, [B, N, D]."""
    wide = accumulation_dtype(a.dtype)
    rows = [
        (a_b.to(wide).unsqueeze(-1) * v_b.to(wide)[index_b.long()]).sum(1)
        for a_b, v_b, index_b in zip(a, v, index, strict=True)
    ]
    return _stack(rows, (*index.shape[:2], v.shape[-1]), a, v).to(a.dtype)


def spmm_transpose(a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
    """Transposed product: ``out[b,j,:] = sum of a[b,i,t] * x[b,i,:] where index[b,i,t] == j``, [B, M, D]."""
    wide = accumulation_dtype(a.dtype)
    rows = []
    for a_b, x_b, index_b in zip(a, x, index, strict=True):
        terms = (a_b.to(wide).unsqueeze(-1) * x_b.to(wide).unsqueeze(1)).flatten(0, 1)
        rows.append(terms.new_zeros(num_keys, x.shape[-1]).index_add(0, index_b.long().flatten(), terms))
    return _stack(rows, (x.shape[0], num_keys, x.shape[-1]), a, x).to(a.dtype)


def _stack(rows: list[Tensor], shape: tuple[int, ...] | torch.Size, left: Tensor, right: Tensor) -> Tensor:
    """All window-heads; without any, an empty result that still has gradients (of nothing)."""
    return torch.stack(rows) if rows else (left.sum() + right.sum()) * left.new_zeros(shape)
