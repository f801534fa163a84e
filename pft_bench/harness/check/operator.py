"""Teacher-forced checks: the same inputs and index for kernel and oracle, so that only arithmetic may differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backends import Backend, get, poisoned
from ...backends.dense import dense_logits
from ...reference import Layer, accumulation_dtype, index_dtype
from . import oracle
from .bounds import arithmetic_roundoff, gamma, output_rounding, split_loss, unit_roundoff
from .result import CheckResult, no_worse_than, nothing, within
from .selection import Compared, compare, structure, summary


def _unchanged(name: str, inputs: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> CheckResult:
    """A kernel must not write to what it was given."""
    changed = [key for key, tensor in inputs.items() if not torch.equal(tensor, before[key])]
    return CheckResult(f"{name} inputs untouched", math.inf if changed else 0.0, ", ".join(changed))


def _copies(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in inputs.items()}


def _recomputed(name: str, out: Tensor, again: Tensor) -> CheckResult:
    """A linear operand was doubled where it lies: so must the output. A result that was kept from before has not.

    Doubling is exact in floating point; a tenth leaves room for kernels whose order of summation varies.
    """
    if out.shape != again.shape or out.numel() == 0:
        return CheckResult(name, 0.0 if out.shape == again.shape else math.inf)
    size = float(out.double().abs().nan_to_num(0.0).max())
    worst = float((again.double() - 2 * out.double()).abs().nan_to_num(0.0).max())
    stale = worst > 0.1 * size
    detail = "the inputs changed, the output did not follow" if stale else ""
    return CheckResult(name, worst / (0.1 * size) if size else float(stale), detail)


def _product_recomputed(backend: Backend, op: str, inputs: Mapping[str, Tensor]) -> CheckResult:
    given = _copies(inputs)
    call = getattr(backend, op)
    keys = _keys(op, list(given.values())[1])
    more = () if keys is None else (keys,)
    out = call(*given.values(), *more)
    if out is None:
        return nothing(f"{op} recomputed")
    out = out.clone()
    next(iter(given.values())).mul_(2)
    return _recomputed(f"{op} recomputed", out, call(*given.values(), *more))


def _keys(op: str, right: Tensor) -> int | None:
    """The number of keys, for the one product that has to be told."""
    return right.shape[1] if op == "spmm_transpose" else None


def _layer_recomputed(backend: Backend, layer: Layer) -> CheckResult:
    given = layer.copied()
    with poisoned(), torch.no_grad():
        out = backend.attention_forward(given)[0].clone()
        given.v.mul_(2)
        again = backend.attention_forward(given)[0]
    return _recomputed("attention recomputed", out, again)


# -- sddmm and spmm ----------------------------------------------------------------------------------------------------


def check_product(
    backend: Backend, op: str, inputs: Mapping[str, Tensor], *, train: bool = False
) -> list[CheckResult]:
    """Check `sddmm` (q, k, index), `spmm` (a, v, index) or `spmm_transpose` (a, x, index; as many keys as queries).

    With `train`, the products of its backward too, which spmm_transpose has none of.
    """
    before = _copies(inputs)
    index = inputs["index"]
    with poisoned(), torch.no_grad():
        left, right = (tensor for name, tensor in inputs.items() if name != "index")
        results = _products(backend, op, (left, right, index), _keys(op, right))
        if train and op != "spmm_transpose":
            results += _product_gradients(backend, op, left, right, index)
        results.append(_product_recomputed(backend, op, inputs))
    return [*results, _unchanged(op, inputs, before)]


def _product_gradients(
    backend: Backend, op: str, left: Tensor, right: Tensor, index: Tensor
) -> list[CheckResult]:
    """The gradients of a product are the other two products: check those on a random output gradient."""
    generator = torch.Generator().manual_seed(1)
    keys = right.shape[1]
    shape = index.shape if op == "sddmm" else (*index.shape[:2], right.shape[2])
    grad = torch.randn(shape, generator=generator).to(left.dtype).to(left.device)
    if op == "sddmm":
        first = _products(backend, "spmm", (grad, right, index), None, "sddmm grad_q")
        return first + _products(backend, "spmm_transpose", (grad, left, index), keys, "sddmm grad_k")
    first = _products(backend, "sddmm", (grad, right, index), None, "spmm grad_a")
    return first + _products(backend, "spmm_transpose", (left, grad, index), keys, "spmm grad_v")


def _products(
    backend: Backend,
    op: str,
    operands: tuple[Tensor, Tensor, Tensor],
    num_keys: int | None,
    label: str | None = None,
) -> list[CheckResult]:
    left, right, index = operands
    label = label or op
    extra = () if num_keys is None else (num_keys,)
    got = getattr(backend, op)(left, right, index, *extra)
    peer = getattr(get("dense"), op)(left, right, index, *extra)
    exact, bound = exact_product(op, left, right, index, num_keys)
    u = unit_roundoff(left.dtype)
    return [
        within(f"{label} operator", got, exact, bound),
        no_worse_than(f"{label} against PyTorch", got, peer, exact, u),
    ]


def exact_product(
    op: str, left: Tensor, right: Tensor, index: Tensor, num_keys: int | None = None
) -> tuple[Tensor, Tensor]:
    """A product in float64 by the dense map, and the largest error of a correct kernel, elementwise.

    The bound is ``gamma_n * sum |a||b|`` for sums of n terms, and the rounding of the output. spmm_transpose may
    multiply float32 in parts (`split_loss`).
    """
    value, sums = _exact_sums(op, left, right, index, num_keys)
    return value, sums + output_rounding(value, left.dtype)


def _exact_sums(
    op: str, left: Tensor, right: Tensor, index: Tensor, num_keys: int | None
) -> tuple[Tensor, Tensor]:
    u = arithmetic_roundoff(left.dtype)
    a, b, places = left.double(), right.double(), index.long()
    if op == "sddmm":
        values = (a @ b.mT).gather(-1, places)
        return values, gamma(a.shape[-1], u) * (a.abs() @ b.abs().mT).gather(-1, places)
    keys = b.shape[1] if num_keys is None else num_keys
    scattered = a.new_zeros((*a.shape[:2], keys)).scatter(-1, places, a)
    if op == "spmm_transpose":
        bound = gamma(max(1, b.shape[1]), u) * (scattered.abs().mT @ b.abs())
        return scattered.mT @ b, bound + (
            split_loss(scattered.mT, b.mT) if left.dtype == torch.float32 else 0.0
        )
    return scattered @ b, gamma(index.shape[-1], u) * (scattered.abs() @ b.abs())


# -- one layer of progressive attention --------------------------------------------------------------------------------


def check_layer(backend: Backend, layer: Layer, *, train: bool = False) -> list[CheckResult]:
    """Check one layer: selection, output, handed-on logits and logsumexp, with `train` the gradients too."""
    inputs = layer.tensors()
    before = _copies(inputs)
    with poisoned(), torch.no_grad():
        out, new_index, new_logits, lse = backend.attention_forward(layer)
    untouched = _unchanged("attention", inputs, before)  # first: the oracle reads the same tensors
    kept = new_index if layer.selects else layer.index
    results = [
        untouched,
        *check_shapes(layer, out, new_index, new_logits, lse),
        _layer_recomputed(backend, layer),
    ]
    if any(not result.passed for result in results):
        return results
    if layer.selects:
        results.append(structure(layer, new_index))
        if not results[-1].passed:
            return results
    done, choices = in_float64(layer, kept, whole=train)
    if layer.selects:
        results.append(summary(new_index, choices))
        if not results[-1].passed:
            return results
    results.append(_joined("attention out", out, [d.out for d in done]))
    results.append(_joined("attention logsumexp", lse, [d.lse for d in done]))
    if kept is not None:
        results.append(_joined("attention logits", new_logits, [d.relative for d in done]))
    results.append(_against_dense(layer, out, [d.out for d in done], kept))
    if train:
        forward = [d.whole for d in done if d.whole is not None]
        results += _check_gradients(backend, layer, (out, new_index, new_logits, lse), kept, forward)
    return results


@dataclass(frozen=True)
class Exact:
    """One window-head in float64: `relative` at the kept entries; the N x M maps only where somebody needs them."""

    out: oracle.Bounded
    lse: oracle.Bounded
    relative: oracle.Bounded
    whole: oracle.Forward | None


def in_float64(
    layer: Layer, kept: Tensor | None, *, whole: bool = False
) -> tuple[list[Exact], list[Compared]]:
    """Each window-head, given what the kernel kept, and how its selection compares with the logits."""
    done: list[Exact] = []
    choices: list[Compared] = []
    for at, part in oracle.window_heads(layer):
        z = oracle.logits(part)
        chosen = None if kept is None else kept[at]
        if layer.selects and chosen is not None:
            choices.append(compare(z, chosen, layer.topk))
        found = oracle.forward(part, chosen, z=z)
        relative = oracle.Bounded(z.value.new_empty(0), z.value.new_empty(0))  # not handed on
        if chosen is not None:
            places = chosen.long()
            relative = oracle.Bounded(
                found.relative.value.gather(-1, places), found.relative.bound.gather(-1, places)
            )
        done.append(Exact(found.out, found.lse, relative, found if whole else None))
    return done, choices


def check_shapes(
    layer: Layer, out: Tensor, new_index: Tensor, new_logits: Tensor, lse: Tensor
) -> list[CheckResult]:
    """The shapes and dtypes that a backend must return."""
    rows = layer.rows
    wide = accumulation_dtype(layer.q.dtype)
    expected = {
        "out": (out, (*rows, layer.v.shape[-1]), layer.v.dtype),
        "index": (new_index, (*rows, layer.kept), index_dtype(layer.keys)),
        "logits": (new_logits, (*rows, layer.handed_on), wide),
        "logsumexp": (lse, rows, wide),
    }
    wrong = [
        f"{name} is {list(tensor.shape)} {tensor.dtype}, expected {list(shape)} {dtype}"
        for name, (tensor, shape, dtype) in expected.items()
        if tuple(tensor.shape) != shape or tensor.dtype != dtype
    ]
    return [CheckResult("attention shapes", math.inf if wrong else 0.0, "; ".join(wrong))]


def _joined(name: str, got: Tensor | None, parts: list[oracle.Bounded]) -> CheckResult:
    if got is None:
        return CheckResult(name, math.inf, "no gradient")
    if not parts:
        return CheckResult(name, 0.0, "empty")
    value, bound = (torch.cat([getattr(part, key) for part in parts]) for key in ("value", "bound"))
    if value.numel() == got.numel():  # window-heads after each other
        value, bound = value.view(got.shape), bound.view(got.shape)
    return within(name, got, value, bound)


def _against_dense(
    layer: Layer, out: Tensor, exact: list[oracle.Bounded], kept: Tensor | None
) -> CheckResult:
    """The output's error next to that of plain PyTorch in the same dtype, on the same kept entries."""
    if not exact:
        return CheckResult("attention against PyTorch", 0.0, "empty")
    peers = []
    for at, part in oracle.window_heads(layer):
        attn = _same_dtype_logits(part).softmax(-1)
        if kept is not None:
            attn = attn * torch.zeros_like(attn).scatter_(-1, kept[at].long(), 1.0)
        peers.append(attn.to(layer.v.dtype) @ part.v)
    peer, value = (torch.cat(parts).view(out.shape) for parts in (peers, [item.value for item in exact]))
    return no_worse_than("attention against PyTorch", out, peer, value, unit_roundoff(layer.v.dtype))


def _same_dtype_logits(layer: Layer) -> Tensor:
    """All logits of a window by plain PyTorch in the layer's own dtype, -inf outside the index."""
    z = dense_logits(layer).to(accumulation_dtype(layer.q.dtype))
    if layer.index is None:
        return z
    places = layer.index.long()
    given = torch.zeros_like(places, dtype=z.dtype) if layer.logits is None else layer.logits.to(z.dtype)
    return z + torch.full_like(z, -math.inf).scatter_(-1, places, given)


def _check_gradients(
    backend: Backend,
    layer: Layer,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    kept: Tensor | None,
    done: list[oracle.Forward],
) -> list[CheckResult]:
    out, new_index, new_logits, lse = outputs
    generator = torch.Generator().manual_seed(1)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype).to(like.device)

    grad_out = normal(out)
    grad_logits = normal(new_logits) if new_logits.shape[-1] else None
    untouched = CheckResult("attention backward inputs untouched", 0.0)
    if backend.composite:
        got = _autograd(backend, layer, grad_out, grad_logits)
    else:
        given = {**layer.tensors(), "grad_out": grad_out, "new_index": new_index, "out": out, "lse": lse}
        given |= {} if grad_logits is None else {"grad_logits": grad_logits}
        before = _copies(given)
        with poisoned(), torch.no_grad():
            got = backend.attention_backward(layer, grad_out, grad_logits, new_index, out, lse)
        untouched = _unchanged("attention backward", given, before)
    exact = []
    for (at, part), forward in zip(oracle.window_heads(layer), done, strict=True):
        handed = None
        if grad_logits is not None and kept is not None:
            handed = torch.zeros_like(forward.attn.value).scatter_(
                -1, kept[at].long(), grad_logits[at].double()
            )
        exact.append(oracle.backward(part, forward, grad_out[at], handed))
    results = [
        untouched,
        _joined("attention grad_q", got[0], [g.q for g in exact]),
        _joined("attention grad_k", got[1], [g.k for g in exact]),
        _joined("attention grad_v", got[2], [g.v for g in exact]),
    ]
    grad_bias = got[3]
    if layer.bias is not None and grad_bias is None:
        results.append(_joined("attention grad_bias", None, []))
    elif grad_bias is not None and exact:
        value, magnitude, bound = _summed([g.bias for g in exact if g.bias is not None], layer.q.shape[1])
        windows, u = layer.q.shape[0], arithmetic_roundoff(layer.q.dtype)
        bound = bound + gamma(windows + 1, u) * magnitude
        results.append(
            within("attention grad_bias", grad_bias, value, bound + output_rounding(value, grad_bias.dtype))
        )
    if layer.logits is not None:
        results.append(
            _joined("attention grad_logits", got[4], [g.logits for g in exact if g.logits is not None])
        )
    return results


def _summed(parts: list[oracle.Bounded], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tables [T, H] of value, magnitude and bound, summed over the windows; the parts are window-heads [T, 1]."""

    def summed(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).unflatten(0, (-1, heads)).sum(0).squeeze(-1).T

    values = [part.value for part in parts]
    return summed(values), summed([value.abs() for value in values]), summed([part.bound for part in parts])


def _autograd(
    backend: Backend, layer: Layer, grad_out: Tensor, grad_logits: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of a composite backend, in the order of `Backend.attention_backward`."""
    names = [n for n in ("q", "k", "v", "bias", "logits") if getattr(layer, n) is not None]
    leaves = {name: getattr(layer, name).detach().requires_grad_() for name in names}
    copy = layer.with_tensors(**leaves)
    out, _, new_logits, _ = backend.attention_forward(copy)
    heads, seeds = [out], [grad_out]
    if grad_logits is not None:
        heads.append(new_logits)
        seeds.append(grad_logits)
    grads = dict(zip(names, torch.autograd.grad(heads, list(leaves.values()), seeds), strict=True))
    return tuple(grads.get(name) for name in ("q", "k", "v", "bias", "logits"))
