"""Wrong kernels, each of a kind that real ones have had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...backends import get
from ...backends.base import empty
from ..check import Layer
from .mutant import BASE, Mutant, Planted, breaks

LAYERS: dict[str, dict[str, int]] = {
    "dense": {"topk": 16, "patterns": 2},
    "dense, selects": {"topk": 5, "patterns": 2},
    "sparse, selects": {"candidates": 9, "topk": 4},
    "sparse": {"candidates": 9, "topk": 9},
}
"""Steps of a chain, as `harness.inputs.layer` makes them."""

PLANTED: list[Planted] = []
"""All of them, in the order of this file."""

ANOTHER_THREAD_S = 0.2


def _plant(
    name: str, guard: str, fails: str, step: str, hook: str, *, needs_gpu: bool = False
) -> Callable[[Callable[..., Any]], type[Mutant]]:
    """Make the function a mutant that replaces `hook`, and plant it."""

    def made(function: Callable[..., Any]) -> type[Mutant]:
        mutant = breaks(hook, fails, name.title().replace(" ", ""))(function)
        PLANTED.append(Planted(name, guard, fails, step, mutant, needs_gpu))
        return mutant

    return made


def _wrong_output(name: str, guard: str, fails: str, step: str) -> Callable[..., type[Mutant]]:
    return _plant(name, guard, fails, step, "wrong_output")


def _wrong_input(name: str, guard: str, fails: str, step: str) -> Callable[..., type[Mutant]]:
    return _plant(name, guard, fails, step, "wrong_input")


def _wrong_gradient(name: str, guard: str, fails: str) -> Callable[..., type[Mutant]]:
    return _plant(name, guard, fails, "dense, gradients", "wrong_gradient")


# -- values ------------------------------------------------------------------------------------------------------------


@_wrong_output("zeros", "values", "attention out", "dense")
def zeros(given: Layer, outputs: list[Tensor]) -> None:
    """All zero."""
    outputs[0] = torch.zeros_like(outputs[0])


@_wrong_output("stale output", "values", "attention out", "dense")
def stale(given: Layer, outputs: list[Tensor]) -> None:
    """The last row keeps what the buffer held."""
    old = empty(outputs[0].shape, torch.float32, torch.device("cpu"))
    old[:, :, :-1] = outputs[0][:, :, :-1]
    outputs[0] = old


@_wrong_output("NaN in one entry", "values", "attention out", "dense")
def nan_in_one_entry(given: Layer, outputs: list[Tensor]) -> None:
    """As a row that no thread computed."""
    outputs[0][1, 2, 7, 5] = float("nan")


@_wrong_output("last row skipped", "values", "attention out", "dense")
def row_tail_skipped(given: Layer, outputs: list[Tensor]) -> None:
    """The rows that do not fill a tile."""
    outputs[0][:, :, -1] = 0


@_wrong_output("wrong head", "values", "attention out", "dense")
def wrong_head(given: Layer, outputs: list[Tensor]) -> None:
    """Each head's output in the next one's place."""
    outputs[0] = outputs[0].roll(1, 1)


@_wrong_input("value of the next key", "values", "attention out", "dense")
def value_of_the_next_key(given: Layer) -> Layer:
    """Key positions off by one."""
    return replace(given, v=given.v.roll(-1, 2).contiguous())


@_wrong_input("index off by one", "values", "attention logsumexp", "sparse")
def candidates_off_by_one(given: Layer) -> Layer:
    """Reads the index one place too far."""
    assert given.index is not None
    return replace(given, index=given.index.roll(-1, -1).contiguous())


@_wrong_input("last candidate skipped", "values", "attention logsumexp", "sparse")
def last_candidate_skipped(given: Layer) -> Layer:
    """The tail that does not fill a vector: its logit is taken for minus infinity."""
    assert given.logits is not None
    logits = given.logits.clone()
    logits[..., -1] = -1e4
    return replace(given, logits=logits)


@_wrong_input("last channel skipped", "values", "attention logsumexp", "dense")
def head_dim_tail_skipped(given: Layer) -> Layer:
    """The last channel of q.k is left out."""
    q = given.q.clone(memory_format=torch.contiguous_format)
    q[..., -1] = 0
    return replace(given, q=q)


def _zeros(tensor: Tensor | None) -> Tensor:
    """As many zeros, in place of what the layers of this step have."""
    assert tensor is not None
    return torch.zeros_like(tensor)


@_wrong_input("missing bias", "values", "attention logsumexp", "dense")
def missing_bias(given: Layer) -> Layer:
    """No relative-position bias."""
    return replace(given, bias=_zeros(given.bias))


@_wrong_input("missing region mask", "values", "attention logsumexp", "dense")
def missing_region_mask(given: Layer) -> Layer:
    """Windows that the shift joined see each other."""
    return replace(given, region=None)


@_wrong_input("logits not accumulated", "values", "attention logsumexp", "sparse")
def logits_not_accumulated(given: Layer) -> Layer:
    """The previous layer's logits are dropped."""
    return replace(given, logits=_zeros(given.logits))


@_wrong_input("tf32 logits", "values", "attention logsumexp", "dense")
def tf32_logits(given: Layer) -> Layer:
    """q and k rounded to 10 bits of mantissa, as a tensor core does by default."""

    def rounded(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    return replace(given, q=rounded(given.q), k=rounded(given.k))


@_wrong_output("exponential 2e-6 off", "values", "attention against PyTorch", "dense")
def slightly_wrong_exponential(given: Layer, outputs: list[Tensor]) -> None:
    """A polynomial of too low a degree."""
    outputs[0] = outputs[0] * (1 + 2e-6)


def row_maximum(given: Layer) -> Tensor:
    """The largest logit of each row, [W, H, N]: the weight of a row that keeps one entry is exp(max - lse)."""
    ones = replace(given, v=torch.ones_like(given.v), topk=1)
    out, _, _, lse = get("dense").attention_forward(ones)
    return out[..., 0].log() + lse


@_wrong_output("renormalised kept values", "values", "attention out", "dense, selects")
def renormalised(given: Layer, outputs: list[Tensor]) -> None:
    """Divides by the sum of what was kept."""
    kept = row_maximum(given) + outputs[2].logsumexp(-1) - outputs[3]
    outputs[0] = outputs[0] / kept.exp().unsqueeze(-1)


@_wrong_output("result of another thread", "values", "attention out", "dense")
def result_of_another_thread(given: Layer, outputs: list[Tensor]) -> None:
    """Returns before the work is done: what a launch without synchronisation does, played by a thread."""
    right = outputs[0]
    outputs[0] = empty(right.shape, torch.float32, torch.device("cpu"))

    def later(target: Tensor) -> None:
        time.sleep(ANOTHER_THREAD_S)
        target.copy_(right)

    threading.Thread(target=later, args=(outputs[0],), daemon=True).start()


# -- selection, index, shapes, inputs ----------------------------------------------------------------------------------


@_wrong_output("keeps one at random", "selection", "attention selection", "dense, selects")
def keeps_one_at_random(given: Layer, outputs: list[Tensor]) -> None:
    """The largest K-1 and one that is not among the K largest, in one row of all; everything else consistent."""
    more = get(BASE).attention_forward(replace(given, topk=given.topk + 1))
    row = (1, 2, 9)
    order = more[2][row].argsort(descending=True)
    chosen = torch.cat((order[: given.topk - 1], order[-1:])).sort().values
    outputs[1][row], outputs[2][row] = more[1][row][chosen], more[2][row][chosen]
    attn = (outputs[2][row] + row_maximum(given)[row] - outputs[3][row]).exp()
    outputs[0][row] = attn @ given.v[row[:2]][outputs[1][row].long()]


@_wrong_output("unsorted index", "index", "attention index", "dense, selects")
def unsorted_index(given: Layer, outputs: list[Tensor]) -> None:
    """Kept keys in descending order."""
    outputs[1], outputs[2] = outputs[1].flip(-1), outputs[2].flip(-1)


@_wrong_output("wide index", "shapes", "attention shapes", "dense, selects")
def wide_index(given: Layer, outputs: list[Tensor]) -> None:
    """int64, four times the memory."""
    outputs[1] = outputs[1].long()


@_wrong_input("mutated input", "inputs untouched", "attention inputs untouched", "dense")
def mutated_input(given: Layer) -> Layer:
    """Rescales q and k where they lie; their product, and so every output, stays the same."""
    given.q.mul_(0.5)
    given.k.mul_(2.0)
    return given


@_plant("unsorted ties", "ties", "attention ties", "ties", "attention_forward")
def larger_key_wins(given: Layer) -> Any:
    """Selects on reversed keys, so that ties go to the larger position."""
    last = given.k.shape[2] - 1
    flipped = replace(given, k=given.k.flip(2).contiguous(), v=given.v.flip(2).contiguous())
    if given.index is not None and given.logits is not None:
        index = (last - given.index).flip(-1).contiguous()
        flipped = replace(flipped, index=index, logits=given.logits.flip(-1).contiguous())
    out, index, logits, lse = get(BASE).attention_forward(flipped)
    return out, (last - index).flip(-1), logits.flip(-1), lse


_KEPT: dict[Any, Any] = {}


@_plant("cached result", "recomputed", "attention recomputed", "dense", "attention_forward")
def cached_result(given: Layer) -> Any:
    """Computes once for each set of buffers: right, and as fast as a dictionary."""
    key = tuple(item.data_ptr() if isinstance(item, Tensor) else item for item in given.arguments())
    if key not in _KEPT:
        # the layer is kept too, so that nobody else gets its addresses
        _KEPT[key] = get(BASE).attention_forward(given), given
    return _KEPT[key][0]


# -- products ----------------------------------------------------------------------------------------------------------


def accumulated(terms: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the last dimension, every partial sum rounded to `dtype`."""
    total = torch.zeros(terms.shape[:-1], dtype=dtype)
    for term in terms.unbind(-1):
        total = (total.float() + term).to(dtype)
    return total.float()


@_plant("float16 accumulation", "products", "sddmm operator", "sddmm", "sddmm")
def accumulates_in_float16(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    """Every partial sum rounded to float16."""
    rows = torch.stack([k_b[index_b.long()] for k_b, index_b in zip(k, index, strict=True)])
    return accumulated(q.unsqueeze(2) * rows, torch.float16)


# -- gradients ---------------------------------------------------------------------------------------------------------


def _without_row(tensor: Tensor | None, row: int) -> Tensor | None:
    if tensor is None:
        return None
    less = tensor.clone()
    less[:, :, row] = 0
    return less


@_wrong_gradient("lost updates of grad_k", "gradients", "attention grad_k")
def lost_update_of_k(
    given: Layer, grad_out: Tensor, grad_logits: Tensor | None, done: Any, got: list[Any]
) -> None:
    """The published kernels' race: of two rows that add to one key, one is lost."""
    got[1] = get(BASE).attention_backward(
        given,
        _without_row(grad_out, 3),  # type: ignore[arg-type]
        _without_row(grad_logits, 3),
        *done,
    )[1]


@_wrong_gradient("lost updates of grad_v", "gradients", "attention grad_v")
def lost_update_of_v(
    given: Layer, grad_out: Tensor, grad_logits: Tensor | None, done: Any, got: list[Any]
) -> None:
    """As above, in the gradient of the values."""
    got[2] = get(BASE).attention_backward(given, _without_row(grad_out, 3), grad_logits, *done)[2]  # type: ignore[arg-type]


@_wrong_gradient("no bias gradient", "gradients", "attention grad_bias")
def no_bias_gradient(
    given: Layer, grad_out: Tensor, grad_logits: Tensor | None, done: Any, got: list[Any]
) -> None:
    """A table that would never train."""
    got[3] = None


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@_plant("result of a side stream", "products", "sddmm operator", "sddmm", "sddmm", needs_gpu=True)
def side_stream(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    """Works on a stream of its own and lets nobody wait for it."""
    out = empty(tuple(index.shape), q.dtype, q.device)
    torch.cuda.current_stream().synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(500_000_000)
        out.copy_((q @ k.mT).gather(-1, index.long()))
    return out
