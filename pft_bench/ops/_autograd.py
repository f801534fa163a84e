"""Derivatives of the ops in every mode that PyTorch has: backward, forward (jvp), and the transforms of torch.func.

`torch.library.register_autograd` knows the backward pass alone: an op with it hands on tangents of zero in forward
mode, without a word, and refuses `torch.func.grad`. What is registered here instead is the same kind of kernel, one
level of a `torch.autograd.Function`, with a jvp. What a transform does around it is the dispatcher's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._library import LIBRARY, is_differentiated

Grads = tuple[Tensor | None, ...]


def register_derivatives(
    name: str,
    *,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Grads],
    jvp: Callable[..., Any],
) -> None:
    """Give the op `name` its derivatives.

    Args:
        name: of an op that `define` made.
        save: `save(ctx, inputs, output)` keeps what the others need, with `save_for_backward`.
        backward: `backward(ctx, *grads)`: a gradient or None for each input.
        jvp: `jvp(ctx, *tangents)`, one for each input, None for zero: the tangent of each output. It may raise, but
            must not leave a derivative out.
    """
    op = getattr(torch.ops.pft_bench, name).default

    def below(keys: Any, inputs: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    class Derivatives(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keys: Any, *inputs: Any) -> Any:
            if torch._C._are_functorch_transforms_active():
                # The levels outside of this one differentiate too. A Function switches that off while it runs.
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                    output = below(keys, inputs)
            else:
                output = below(keys, inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Grads:
            return None, *backward(_Shifted(ctx), *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            return jvp(_Shifted(ctx), *tangents[1:])

    def kernel(keys: Any, *inputs: Any) -> Any:
        if not is_differentiated(inputs):
            return below(keys, inputs)
        # Inside a transform this kernel is called for each of its levels in turn, on tensors of that level.
        with enable_single_level_autograd_function():
            return Derivatives.apply(keys, *inputs)  # type: ignore[attr-defined]

    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)


class _Shifted:
    """The context as the op's own functions see it: without the dispatch keys, which are its first input."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @property
    def needs_input_grad(self) -> Sequence[bool]:
        return self._ctx.needs_input_grad[1:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


# -- vmap --------------------------------------------------------------------------------------------------------------

InDims = tuple[int | None, ...]


def in_front(x: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    """An argument of a vmapped call with its batch dimension (added where it has none) in front."""
    if x is None:
        return None
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def one_by_one(op: Callable[..., Any], info: Any, in_dims: InDims, *inputs: Any) -> tuple[Any, Any]:
    """The vmap rule of last resort: a call for each element of the batch."""
    results = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(part) for part in zip(*results, strict=True)), (0,) * len(results[0])
