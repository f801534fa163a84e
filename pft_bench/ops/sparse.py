"""The three sparse products. Each one's gradients are the other two, so they differentiate any number of times.

Shapes: q, x [B, N, D]; k, v [B, M, D]; a, index [B, N, K], for B window-heads, N queries, M keys and K kept
entries a row (the ELL format: distinct keys, any order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import Backend, BadIndex, can_check_index, get, require
from ._autograd import Grads, InDims, in_front, register_derivatives
from ._library import define, dispatched, full_precision, is_plain, unit_last_stride
from .index import Index, checked_index, places_of
from .validate import require_count, require_nonempty, require_pair, require_shape


def sddmm(q: Tensor, k: Tensor, index: Tensor | Index, backend: str = "auto") -> Tensor:
    """Sampled dense-dense product (SDDMM): only the products of queries with the keys that `index` names.

    ``out[b,i,t] = sum_e q[b,i,e] * k[b, index[b,i,t], e]``

    Args:
        q: queries [B, N, D], floating point, any strides.
        k: keys [B, M, D], dtype and device of `q`.
        index: kept keys [B, N, K], int16/int32/int64, distinct within a row; an `Index` is not checked again.
        backend: a name from `pft_bench.backends()`, or "auto".

    Returns:
        [B, N, K] in the dtype of `q`, accumulated in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or values.
        pft_bench.BackendUnavailable: the backend cannot run here; the message says why.
    """
    require_pair("q", q, "k", k, ("[B, N, D]", "[B, M, D]"))
    batch, queries, dim = q.shape
    other_batch, keys, other_dim = k.shape
    if other_batch != batch or other_dim != dim:
        require_shape("k", k, (batch, keys, dim), "[B, M, D]")
    if dim < 1:
        require_nonempty("the head_dim D of q", dim, q)
    chosen = require(backend, q.device, q.dtype)
    places = places_of(index, keys, "q", q, (batch, queries, None))
    return _product("sddmm", chosen, q, k, places, isinstance(index, Index))


def spmm(a: Tensor, v: Tensor, index: Tensor | Index, backend: str = "auto") -> Tensor:
    """Sparse-dense product (SpMM): the rows of `v` that `index` names, weighted with `a` and summed.

    ``out[b,i,:] = sum_t a[b,i,t] * v[b, index[b,i,t], :]``

    Args:
        a: weights [B, N, K], floating point, any strides.
        v: values [B, M, D], dtype and device of `a`.
        index, backend: as `sddmm` takes them.

    Returns:
        [B, N, D] in the dtype of `a`, accumulated in float32 (float64 for float64). Raises as `sddmm` does.
    """
    require_pair("a", a, "v", v, ("[B, N, K]", "[B, M, D]"))
    rows = a.shape
    batch, keys, dim = v.shape
    if batch != rows[0]:
        require_shape("v", v, (rows[0], keys, dim), "[B, M, D]")
    if dim < 1:
        require_nonempty("the head_dim D of v", dim, v)
    chosen = require(backend, a.device, a.dtype)
    places = places_of(index, keys, "a", a, rows)
    return _product("spmm", chosen, a, v, places, isinstance(index, Index))


def spmm_transpose(
    a: Tensor, x: Tensor, index: Tensor | Index, num_keys: int | None = None, backend: str = "auto"
) -> Tensor:
    """The transposed SpMM: every weighted row of `x` is added to the key that `index` names.

    ``out[b,j,:] = sum of a[b,i,t] * x[b,i,:] over (i,t) with index[b,i,t] == j``, in a fixed order, without atomics.

    Args:
        a: weights [B, N, K], floating point, any strides.
        x: rows [B, N, D], dtype and device of `a`.
        index, backend: as `sddmm` takes them.
        num_keys: M, the number of keys; an `Index` knows it.

    Returns:
        [B, M, D] in the dtype of `a`, accumulated in float32 (float64 for float64). Raises as `sddmm` does.
    """
    require_pair("a", a, "x", x, ("[B, N, K]", "[B, N, D]"))
    if num_keys is None and isinstance(index, Index):
        num_keys = index.num_keys
    num_keys = require_count("num_keys", num_keys, 0)
    batch, queries, _ = a.shape
    dim = x.shape[2]
    require_shape("x", x, (batch, queries, dim), "[B, N, D]")
    if dim < 1:
        require_nonempty("the head_dim D of x", dim, x)
    chosen = require(backend, a.device, a.dtype)
    places = places_of(index, num_keys, "a", a, a.shape)
    return _product("spmm_transpose", chosen, a, x, places, isinstance(index, Index), num_keys)


def _product(
    name: str, chosen: Backend, left: Tensor, right: Tensor, places: Tensor, known: bool, *num_keys: int
) -> Tensor:
    """The product over `places`, which is `known` to hold distinct keys in range, or checked here."""
    if not known:
        if is_plain((left, right, places)):
            checked = _checked_on_the_way(getattr(chosen, name), left, right, places, *num_keys)
            if checked is not None:
                return checked
        places = checked_index(places, num_keys[0] if num_keys else right.shape[1])
    if chosen.composite:
        with full_precision(left):
            made: Tensor = getattr(chosen, name)(left, right, places, *num_keys)
    elif is_plain((left, right, places)):
        made = _RUN[name](left, right, places, *num_keys, chosen.name)
    else:
        made = dispatched(name, left, right, places, *num_keys, chosen.name)
    return made


def _checked_on_the_way(
    product: Callable[..., Tensor], left: Tensor, right: Tensor, places: Tensor, *num_keys: int
) -> Tensor | None:
    """The product if the kernel itself can check its index, and found no fault; the caller looks for it then."""
    if not can_check_index(product):
        return None
    operands = (unit_last_stride(left), unit_last_stride(right), places.contiguous())
    try:
        return product(*operands, *num_keys, checked=False)
    except BadIndex:
        return None


def _run_sddmm(q: Tensor, k: Tensor, index: Tensor, backend: str) -> Tensor:
    return get(backend).sddmm(unit_last_stride(q), unit_last_stride(k), index)


def _run_spmm(a: Tensor, v: Tensor, index: Tensor, backend: str) -> Tensor:
    return get(backend).spmm(unit_last_stride(a), unit_last_stride(v), index)


def _run_spmm_transpose(a: Tensor, x: Tensor, index: Tensor, num_keys: int, backend: str) -> Tensor:
    return get(backend).spmm_transpose(unit_last_stride(a), unit_last_stride(x), index, num_keys)


_RUN: dict[str, Callable[..., Tensor]] = {
    "sddmm": _run_sddmm,
    "spmm": _run_spmm,
    "spmm_transpose": _run_spmm_transpose,
}
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
    *tensors, ctx.numbers = *inputs[:3], inputs[3:]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


_GRADIENTS = {
    "sddmm": (("spmm", "grad", "right"), ("spmm_transpose", "grad", "left")),
    "spmm": (("sddmm", "grad", "right"), ("spmm_transpose", "left", "grad")),
    "spmm_transpose": (("sddmm", "right", "grad"), ("spmm", "left", "grad")),
}
"""Product -> for its left and for its right operand: the product that is its gradient, and that one's operands."""


def _backward_of(name: str) -> Callable[..., Grads]:
    def backward(ctx: Any, grad: Tensor) -> Grads:
        left, right, index = ctx.saved_tensors
        operands = {"grad": grad, "left": left, "right": right}
        found: list[Tensor | None] = []
        for needed, (product, one, other) in zip(ctx.needs_input_grad, _GRADIENTS[name], strict=False):
            keys = (right.shape[1],) if product == "spmm_transpose" else ()
            run = getattr(torch.ops.pft_bench, product)
            found.append(
                run(operands[one], operands[other], index, *keys, ctx.numbers[-1]) if needed else None
            )
        return (*found, None, *(None for _ in ctx.numbers))

    return backward


def _jvp_of(name: str) -> Callable[..., Tensor]:
    """The product rule: each product is linear in its first argument and in its second."""

    def jvp(ctx: Any, left: Tensor | None, right: Tensor | None, *_: object) -> Tensor:
        first, second, index = ctx.saved_tensors
        product = getattr(torch.ops.pft_bench, name)
        parts = [
            product(one, other, index, *ctx.numbers)
            for one, other in ((left, second), (first, right))
            if one is not None and other is not None
        ]
        tangent: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return tangent

    return jvp


def _vmap_of(name: str) -> Callable[..., tuple[Tensor, int]]:
    """The batch is so many more window-heads."""

    def rule(info: Any, in_dims: InDims, *inputs: Any) -> tuple[Tensor, int]:
        count = info.batch_size
        tensors = (in_front(x, dim, count) for x, dim in zip(inputs[:3], in_dims[:3], strict=True))
        flat = (x.flatten(0, 1) for x in tensors if x is not None)
        out = getattr(torch.ops.pft_bench, name)(*flat, *inputs[3:])
        return out.unflatten(0, (count, out.shape[0] // count)), 0

    return rule


for _name in _GRADIENTS:
    register_derivatives(_name, save=_save, backward=_backward_of(_name), jvp=_jvp_of(_name))
    torch.library.register_vmap(f"pft_bench::{_name}", _vmap_of(_name))


@register_flop_formula(
    [torch.ops.pft_bench.sddmm, torch.ops.pft_bench.spmm, torch.ops.pft_bench.spmm_transpose]
)
def sparse_product_flops(
    first_shape: torch.Size, second_shape: torch.Size, index_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """2 * B * N * K * D: a multiply and an add for every kept entry and channel."""
    batch, queries, kept = index_shape
    return 2 * batch * queries * kept * int(second_shape[2])
