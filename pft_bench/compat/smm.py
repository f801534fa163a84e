"""The four functions of the published extension `smm_cuda`, by this package's ops.

They take and return what the published ones do: keys transposed, an int32 index, gradients as a list of two. Unlike
those, they run on a CPU too, in every dtype that a backend has, add gradients in a fixed order, and check what
they are given. They are called inside autograd functions of the published model, so they are not differentiable.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops

BACKEND = "auto"
"""The backend that computes, set by `pft_bench.compat.install`."""


@torch.no_grad()
def qmk_forward(a: Tensor, b: Tensor, index: Tensor) -> Tensor:
    """Products of queries `a` [b, n, c] and keys `b` [b, c, m] at `index` [b, n, k]: [b, n, k]."""
    return _sddmm(a, _keys(b), index)


@torch.no_grad()
def qmk_backward(grad: Tensor, a: Tensor, b: Tensor, index: Tensor) -> list[Tensor]:
    """Gradients of `qmk_forward` for `grad` [b, n, k]: of a [b, n, c] and of b [b, c, m]."""
    grad_keys = _spmm_transpose(grad, a, index, b.shape[-1])
    return [_spmm(grad, _keys(b), index), grad_keys.transpose(1, 2).contiguous()]


@torch.no_grad()
def amv_forward(a: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Rows of values `v` [b, m, c] at `index` [b, n, k], weighted with `a` [b, n, k]: [b, n, c]."""
    return _spmm(a, v, index)


@torch.no_grad()
def amv_backward(grad: Tensor, a: Tensor, v: Tensor, index: Tensor) -> list[Tensor]:
    """Gradients of `amv_forward` for `grad` [b, n, c]: of a [b, n, k] and of v [b, m, c]."""
    return [_sddmm(grad, v, index), _spmm_transpose(a, grad, index, v.shape[1])]


FUNCTIONS = {
    "SMM_QmK_forward_cuda": qmk_forward,
    "SMM_QmK_backward_cuda": qmk_backward,
    "SMM_AmV_forward_cuda": amv_forward,
    "SMM_AmV_backward_cuda": amv_backward,
}


def _keys(b: Tensor) -> Tensor:
    if b.dim() != 3:
        raise ValueError(f"keys must be [b, c, m], got {list(b.shape)}")
    return b.transpose(1, 2)


def _sddmm(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    def spread() -> Tensor:
        kept = index.shape[-1]
        return ops.sddmm(q.repeat_interleave(kept, 1), k, _spread(index), BACKEND).view(index.shape)

    return _either(lambda: ops.sddmm(q, k, index, BACKEND), spread, index)


def _spmm(a: Tensor, v: Tensor, index: Tensor) -> Tensor:
    def spread() -> Tensor:
        rows = ops.spmm(a.flatten(1).unsqueeze(-1), v, _spread(index), BACKEND)
        return rows.view(*index.shape, -1).sum(2)

    return _either(lambda: ops.spmm(a, v, index, BACKEND), spread, index)


def _spmm_transpose(a: Tensor, x: Tensor, index: Tensor, keys: int) -> Tensor:
    def spread() -> Tensor:
        wide = x.repeat_interleave(index.shape[-1], 1)
        return ops.spmm_transpose(a.flatten(1).unsqueeze(-1), wide, _spread(index), keys, BACKEND)

    return _either(lambda: ops.spmm_transpose(a, x, index, keys, BACKEND), spread, index)


def _spread(index: Tensor) -> Tensor:
    """Each entry as a row of its own, [b, n*k, 1]: a key that occurs twice is then in two rows."""
    return index.flatten(1).unsqueeze(-1)


def _either(direct: Callable[[], Tensor], spread: Callable[[], Tensor], index: Tensor) -> Tensor:
    """The published extension lets a key occur twice in a row, which no model makes and our ops refuse."""
    try:
        return direct()
    except ValueError:
        ordered = index.sort(-1).values
        if not bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise
    return spread()
