"""A sharp look at a small part of a result: random rows, or a random window-head, in float64 with the derived bounds.

For results of timed calls: cheap enough to be made between them, and nobody knows beforehand where it falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ...common import entropy
from ...reference import Layer, accumulation_dtype, index_dtype
from . import oracle
from .bounds import arithmetic_roundoff, gamma, output_rounding
from .operator import check_shapes, exact_product
from .result import CheckResult, within
from .selection import check_selection, compare, structure, summary

ROWS = 32
"""Rows of a product, and queries of a layer's window, that one look holds against float64."""


def _rows(count: int, most: int = ROWS) -> Tensor:
    return torch.tensor(entropy.some(count, most))


def _place(head: int | None, heads: int) -> int:
    """The given window-head, or any."""
    return entropy.below(heads) if head is None else head


def _shape(
    name: str, got: object, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
) -> CheckResult:
    """Kind, shape, dtype, device and layout of one tensor, and that all of it is finite."""
    wanted = f"{list(shape)} {dtype or like.dtype} on {like.device}"
    if not isinstance(got, Tensor):
        return CheckResult(name, math.inf, f"got {type(got).__name__}, expected {wanted}")
    right = (
        tuple(got.shape) == tuple(shape) and got.dtype == (dtype or like.dtype) and got.device == like.device
    )
    if not right or got.layout != torch.strided:
        layout = "" if got.layout == torch.strided else f", {got.layout}"
        return CheckResult(
            name, math.inf, f"got {list(got.shape)} {got.dtype} on {got.device}{layout}, expected {wanted}"
        )
    if got.is_floating_point() and not bool(got.isfinite().all()):
        return CheckResult(name, math.inf, "not all of it is finite")
    return CheckResult(name, 0.0)


def _stop(results: Sequence[CheckResult]) -> bool:
    return any(not result.passed for result in results)


def spot_product(
    op: str, given: Mapping[str, Tensor], got: object, head: int | None = None
) -> list[CheckResult]:
    """Random rows of `sddmm` (q, k, index) or `spmm` (a, v, index): some of all, and some of one window-head."""
    left, right, index = given.values()
    batch, queries, kept = index.shape
    width = kept if op == "sddmm" else right.shape[-1]
    results = [_shape(f"{op} result", got, (batch, queries, width), left)]
    if _stop(results) or not isinstance(got, Tensor) or not got.numel():
        return results
    anywhere, here = _rows(batch * queries, ROWS // 2), _rows(queries, ROWS // 2)
    flat = torch.cat([anywhere, here + _place(head, batch) * queries])
    b, n = (flat // queries).to(left.device), (flat % queries).to(left.device)
    found = got.detach()[b, n]
    u = arithmetic_roundoff(left.dtype)
    rows, factors = right[b.unsqueeze(-1), index[b, n].long()].double(), left[b, n].double()
    if op == "sddmm":
        products, terms = rows * factors.unsqueeze(1), left.shape[-1]
        exact, size = products.sum(-1), products.abs().sum(-1)
    else:
        products, terms = rows * factors.unsqueeze(-1), kept
        exact, size = products.sum(1), products.abs().sum(1)
    bound = gamma(terms, u) * size + output_rounding(exact, left.dtype)
    return [*results, within(f"{op} rows", found, exact, bound)]


def spot_transposed(
    given: Mapping[str, Tensor], num_keys: int, got: object, head: int | None = None
) -> list[CheckResult]:
    """`spmm_transpose` (a, x, index) at one window-head, onto `num_keys` rows."""
    a, x, index = given.values()
    results = [_shape("spmm_transpose result", got, (x.shape[0], num_keys, x.shape[-1]), x)]
    if _stop(results) or not isinstance(got, Tensor) or not got.numel():
        return results
    b = slice(at := _place(head, x.shape[0]), at + 1)
    exact = exact_product("spmm_transpose", a[b], x[b], index[b], num_keys)
    return [*results, within("spmm_transpose rows", got.detach()[b], *exact)]


def spot_product_gradients(
    op: str, given: Mapping[str, Tensor], grad: Tensor, got: object, head: int | None = None
) -> list[CheckResult]:
    """The gradients of both factors at one window-head."""
    left, right, index = given.values()
    parts = got if isinstance(got, tuple | list) else ()
    if len(parts) != 2:
        return [CheckResult(f"{op} gradients", math.inf, f"got {len(parts)} gradients, expected 2")]
    results = [
        _shape(f"{op} grad {name}", part, like.shape, like)
        for name, part, like in zip(("left", "right"), parts, (left, right), strict=True)
    ]
    if _stop(results):
        return results
    b = slice(at := _place(head, index.shape[0]), at + 1)
    if op == "sddmm":
        exact = [
            exact_product("spmm", grad[b], right[b], index[b]),
            exact_product("spmm_transpose", grad[b], left[b], index[b], right.shape[1]),
        ]
    else:
        exact = [
            exact_product("sddmm", grad[b], right[b], index[b]),
            exact_product("spmm_transpose", left[b], grad[b], index[b], right.shape[1]),
        ]
    names = (f"{op} grad left", f"{op} grad right")
    return results + [within(name, part[b], *e) for name, part, e in zip(names, parts, exact, strict=True)]


def spot_layer(
    layer: Layer, outputs: object, head: int | None = None, *, any_order: bool = False
) -> list[CheckResult]:
    """Random queries of one window-head and of another: selection, output, handed-on logits, logsumexp
    (None: not asked for). In `any_order` may be what is kept by compositions of public operators.
    """
    parts = outputs if isinstance(outputs, tuple | list) else ()
    if len(parts) != 4:
        return [CheckResult("attention result", math.inf, f"got {len(parts)} tensors, expected 4")]
    out, new_index, new_logits, lse = parts
    shapes = [_shape("attention out", out, (*layer.rows, layer.v.shape[-1]), layer.v)]
    wide = accumulation_dtype(layer.q.dtype)
    kind = torch.int64 if any_order else index_dtype(layer.keys)
    shapes.append(_shape("attention index", new_index, (*layer.rows, layer.kept), layer.q, kind))
    shapes.append(_shape("attention logits", new_logits, (*layer.rows, layer.handed_on), layer.q, wide))
    if lse is not None:
        shapes.append(_shape("attention logsumexp", lse, layer.rows, layer.q, wide))
        shapes += [] if _stop(shapes) else check_shapes(layer, out, new_index, new_logits, lse)
    if _stop(shapes) or not out.numel():
        return shapes
    windows, heads = layer.rows[:2]
    number = windows * heads
    first = _place(head, number)
    for place in dict.fromkeys((first, (first + 1 + entropy.below(max(1, number - 1))) % number)):
        results = shapes + _spot_window_head(layer, outputs, place, any_order=any_order)
        if _stop(results):
            break
    return results


def spot_output(
    layer: Layer, out: Tensor, kept: Tensor | None, logits: Tensor | None, head: int | None = None
) -> list[CheckResult]:
    """What the public op returned in a forward pass, at one window-head: `kept` is its selection where it selects."""
    results = [_shape("attention out", out, (*layer.rows, layer.v.shape[-1]), layer.v)]
    if _stop(results) or not out.numel() or (layer.selects and kept is None):
        return results
    place = _place(head, math.prod(layer.rows[:2]))
    return results + _spot_window_head(layer, (out, kept, logits, None), place, any_order=False)


def _spot_window_head(layer: Layer, outputs: object, place: int, *, any_order: bool) -> list[CheckResult]:
    out, new_index, new_logits, lse = cast(tuple[Tensor, Tensor, Tensor | None, Tensor | None], outputs)
    queries = _rows(layer.rows[2], ROWS // 2).to(layer.q.device)
    w, h = divmod(place, layer.rows[1])
    part = _queries(oracle.window_head(layer, w, h), queries)

    def rows(tensor: Tensor) -> Tensor:
        return tensor[w : w + 1, h : h + 1].detach()[:, :, queries]

    kept, relative = part.index, None if new_logits is None else rows(new_logits)
    if layer.selects:
        kept = rows(new_index)
        if any_order:
            kept, order = kept.sort(-1)
            relative = None if relative is None else relative.gather(-1, order)
    results: list[CheckResult] = []
    z = oracle.logits(part, queries)
    if layer.selects and kept is not None:
        results.append(structure(part, kept))
        if _stop(results):
            return results
        results.append(summary(kept, [compare(z, kept, layer.topk)]))
        if _stop(results):
            return results
    exact = oracle.forward(part, kept, queries, z)
    results.append(within("attention out", rows(out), exact.out.value, exact.out.bound))
    if lse is not None:
        results.append(within("attention logsumexp", rows(lse), exact.lse.value, exact.lse.bound))
    if kept is not None and relative is not None:
        handed = (item.gather(-1, kept.long()) for item in (exact.relative.value, exact.relative.bound))
        results.append(within("attention logits", relative, *handed))
    return results


def _queries(layer: Layer, queries: Tensor) -> Layer:
    """The rows of some queries, against all keys."""
    if layer.region is not None:
        raise ValueError("a look at some queries knows no regions")
    names = [name for name in ("q", "index", "logits") if getattr(layer, name) is not None]
    return layer.with_tensors(**{name: getattr(layer, name)[:, :, queries] for name in names})


BIAS_WINDOWS = 4
"""Most windows for which the gradient of the bias table, a sum over all of them, is computed in float64."""


def spot_gradients(
    layer: Layer,
    kept: Tensor | None,
    grad_out: Tensor,
    grad_logits: Tensor | None,
    got: object,
    place: int | None = None,
) -> list[CheckResult]:
    """All gradients at one window-head, `place`; `kept` is the kernel's own selection, None where all keys are kept.

    `got` are the gradients of q, k, v and, where there are, bias and logits, in this order.
    """
    names = [name for name in ("q", "k", "v", "bias", "logits") if getattr(layer, name) is not None]
    parts = got if isinstance(got, tuple | list) else ()
    if len(parts) != len(names):
        return [CheckResult("attention gradients", math.inf, f"got {len(parts)}, expected {len(names)}")]
    results = [
        _shape(f"attention grad_{name}", part, getattr(layer, name).shape, getattr(layer, name))
        for name, part in zip(names, parts, strict=True)
    ]
    if _stop(results):
        return results
    grads = dict(zip(names, parts, strict=True))
    at, head = divmod(_place(place, math.prod(layer.q.shape[:2])), layer.q.shape[1])
    every = layer.bias is not None and layer.q.shape[0] <= BIAS_WINDOWS
    exact = {}
    for i in range(layer.q.shape[0]) if every else (at,):
        alone = oracle.window_head(layer, i, head)
        chosen = None if kept is None else kept[i : i + 1, head : head + 1]
        if layer.selects and chosen is not None and i == at:
            results += check_selection(alone, chosen)
            if _stop(results):
                return results
        cut = slice(i, i + 1), slice(head, head + 1)
        handed = None if grad_logits is None else grad_logits[cut]
        exact[i] = _exact_gradients(alone, chosen, grad_out[cut], handed)
    for name in names:
        if name != "bias":
            bounded = getattr(exact[at], name)
            found = grads[name][at : at + 1, head : head + 1]
            results.append(within(f"attention grad_{name}", found, bounded.value, bounded.bound))
    if every:
        done = [item.bias for item in exact.values() if item.bias is not None]
        value = torch.stack([item.value for item in done]).sum(0)
        size = torch.stack([item.value.abs() for item in done]).sum(0)
        bound = torch.stack([item.bound for item in done]).sum(0)
        bound = bound + gamma(len(done) + 1, arithmetic_roundoff(layer.q.dtype)) * size
        found = grads["bias"][:, head : head + 1]
        results.append(
            within("attention grad_bias", found, value, bound + output_rounding(value, found.dtype))
        )
    return results


def _exact_gradients(
    alone: Layer, chosen: Tensor | None, grad_out: Tensor, grad_logits: Tensor | None
) -> oracle.Gradients:
    forward = oracle.forward(alone, chosen)
    handed = None
    if grad_logits is not None and chosen is not None:
        places = chosen.long()
        handed = torch.zeros_like(forward.attn.value).scatter_(-1, places, grad_logits.double())
    return oracle.backward(alone, forward, grad_out, handed)
