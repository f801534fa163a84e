"""The `triton` backend: allocates, plans and starts the kernels of `pft_bench.kernels.triton`.

On a machine without a GPU the kernels can be executed by Triton's interpreter, for checking only: Triton decides that
when the kernels are first imported, so TRITON_INTERPRET=1 must be in the environment when Python starts.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ..reference import Layer
from .base import AttentionBackward, AttentionForward, Backend, Maybe, empty, empty_gradients, empty_outputs

MINIMUM = (3, 5)


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in text.split(".")[:2])


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for in the environment."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def interpreter_limit() -> str | None:
    """Why the installed Triton cannot interpret with the installed NumPy, and what to do; None if it can.

    Before Triton 3.7 a loop bound is turned into an int from an array of shape [1], an error since NumPy 2.4.
    """
    import triton

    if _version(triton.__version__) >= (3, 7) or _version(numpy.__version__) < (2, 4):
        return None
    return (
        f"the interpreter of Triton {triton.__version__} does not work with NumPy {numpy.__version__}: "
        "pip install 'triton>=3.7' or 'numpy<2.4'"
    )


def _kernels(name: str) -> ModuleType:
    """A kernel module, imported when first needed: without Triton everything else must work."""
    return importlib.import_module(f"pft_bench.kernels.triton.{name}")


class InvertedIndex(NamedTuple):
    """Per key, the entries i * K + t of the index that name it, ascending."""

    start: Tensor
    """[W * H, M + 1] int32: where the list of each key begins."""
    entries: Tensor
    """[W * H, N * K] int32."""


class TritonBackend(Backend):
    """Portable kernels, and a second opinion on the CUDA ones."""

    name = "triton"
    dtypes = frozenset({torch.float32, torch.float16, torch.bfloat16})
    composite = False

    @property
    def summary(self) -> str:  # type: ignore[override]
        """What runs the kernels here."""
        if interpreted():
            return "Triton kernels in Triton's interpreter (TRITON_INTERPRET=1): for checking, never timed"
        return "Triton kernels, compiled at first use"

    @property
    def devices(self) -> frozenset[str]:  # type: ignore[override]
        """GPU tensors; CPU tensors too under the interpreter."""
        return frozenset({"cuda", "cpu"}) if interpreted() else frozenset({"cuda"})

    @property
    def timed(self) -> bool:  # type: ignore[override]
        """Not under the interpreter, whose time says nothing about a kernel."""
        return not interpreted()

    def available(self) -> str | None:
        """A GPU, or the interpreter for checking."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed: pip install 'pft-bench[triton]' (Linux)"
        import triton

        if _version(triton.__version__) < MINIMUM:
            return f"Triton {triton.__version__} is too old: pip install 'triton>=3.5'"
        if interpreted():
            return interpreter_limit()
        if torch.cuda.is_available():
            return None
        return (
            "no GPU found; to check the kernels (never to time them) on the CPU, "
            "start Python with TRITON_INTERPRET=1 in the environment"
        )

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """Gathered, or picked from dense tiles where that is estimated to cost less."""
        out = empty(index.shape, q.dtype, q.device)
        with _on(q):
            _sddmm(_one_head(q), _one_head(k), _one_head(index), _one_head(out))
        return out

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Gathered rows, weighted and summed."""
        out = empty((*index.shape[:2], v.shape[2]), v.dtype, v.device)
        with _on(v):
            _spmm(_one_head(a), _one_head(v), _one_head(index), _one_head(out))
        return out

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """Through the inverted index, which needs 4 bytes an entry."""
        out = empty((index.shape[0], num_keys, x.shape[2]), x.dtype, x.device)
        with _on(x):
            inverted = _invert(_one_head(index), num_keys)
            _spmm_transpose(_one_head(a), _one_head(x), inverted, _one_head(out))
        return out

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One launch."""
        results = empty_outputs(layer)
        with _on(layer.q):
            _kernels("progressive_attention").plan_attention(*layer.arguments(), *results).run()
        return results

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Maybe, new_index: Tensor, out: Tensor, lse: Tensor
    ) -> AttentionBackward:
        """A chain of launches on one stream; workspaces are of the size of the lists, never N x N."""
        with _on(layer.q):
            delta = empty(lse.shape, torch.float32, layer.q.device)
            _backward("plan_row_delta", grad_out, out, delta)
            made = _Backward(layer, grad_out, grad_logits, lse, delta)
            selected = new_index if layer.selects else None
            return made.dense(selected) if layer.index is None else made.listed(layer.index, selected)


@dataclass(frozen=True)
class _Backward:
    """What the launches of a backward pass share."""

    layer: Layer
    grad_out: Tensor
    grad_logits: Tensor | None
    lse: Tensor
    delta: Tensor

    def listed(self, index: Tensor, selected: Tensor | None) -> AttentionBackward:
        """Listed candidates; `selected` are the kept ones where some were dropped."""
        keys = self.layer.keys
        gradient, attention = self._row_pass(index, selected, self.delta)
        grads = empty_gradients(self.layer)
        inverted = _invert(index, keys)
        _spmm(gradient, self.layer.k, index, grads[0], self.layer.scale)
        _spmm_transpose(gradient, self.layer.q, inverted, grads[1], self.layer.scale)
        kept = inverted if selected is None else _invert(selected, keys)
        _spmm_transpose(attention, self.grad_out, kept, grads[2])
        grad_bias = self._bias_gradient(index, gradient, dense=False)
        return (*grads, grad_bias, None if self.layer.logits is None else gradient)

    def dense(self, selected: Tensor | None) -> AttentionBackward:
        """All keys are candidates; `selected` are the kept ones where some were dropped."""
        grads = empty_gradients(self.layer)
        kept, gradient = None, None
        if selected is not None:
            gradient, attention = self._row_pass(selected, None, None)
            inverted = _invert(selected, self.layer.keys)
            _spmm_transpose(attention, self.grad_out, inverted, grads[2])
            kept = (selected, *inverted, gradient)
        for launch in _kernels("progressive_attention_backward").plan_dense_backward(
            *self._whole(),
            kept,
            grads[0],
            grads[1],
            grads[2] if selected is None else None,
            self.layer.scale,
            self.layer.region_penalty,
        ):
            launch.run()
        return (*grads, self._bias_gradient(selected, gradient, dense=True), None)

    def _whole(self) -> tuple[Tensor | None, ...]:
        """What a pass over all keys reads."""
        layer = self.layer
        return layer.q, layer.k, layer.v, layer.bias, layer.region, self.grad_out, self.lse, self.delta

    def _row_pass(
        self, index: Tensor, selected: Tensor | None, delta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(G over the listed candidates, A over the kept ones), float32 [W, H, N, C] and [W, H, N, K]."""
        kept = index if selected is None else selected
        grad_kept, attention = (empty(kept.shape, torch.float32, kept.device) for _ in range(2))
        gradient = empty(index.shape, torch.float32, index.device)
        _sddmm(self.grad_out, self.layer.v, kept, grad_kept)
        _backward(
            "plan_candidate_gradient",
            self.layer.q,
            self.layer.k,
            self.layer.bias,
            self.layer.region if self.layer.index is None else None,
            index,
            self.layer.logits,
            selected,
            grad_kept,
            self.grad_logits,
            self.lse,
            delta,
            attention,
            gradient,
            self.layer.scale,
            self.layer.region_penalty,
        )
        return gradient, attention

    def _bias_gradient(self, index: Tensor | None, gradient: Tensor | None, *, dense: bool) -> Tensor | None:
        """[T, H] from the part of G on a list and, where all keys are candidates, the dense part."""
        if self.layer.bias is None:
            return None
        module = _kernels("bias_gradient")
        windows, heads = self.layer.q.shape[:2]
        cells = self.layer.bias.shape[0]
        side = math.isqrt(self.layer.keys)
        parts, each = module.parts_of(windows, heads * cells * 4)
        dense_parts, dense_each = module.parts_of(windows, side * heads * cells * 4)
        tables = (parts if index is not None else 0) + (dense_parts * side if dense else 0)
        partial = empty((tables, heads, cells), torch.float32, self.layer.q.device)
        if index is not None:
            module.plan_bias_listed(index, gradient, partial[tables - parts :], side, each).run()
        if dense:
            module.plan_bias_dense(
                *self._whole(),
                partial[: dense_parts * side],
                self.layer.scale,
                self.layer.region_penalty,
                side,
                dense_each,
                index is None,
            ).run()
        grad_bias = empty(self.layer.bias.shape, torch.float32, self.layer.q.device)
        module.plan_add_tables(partial, grad_bias).run()
        return grad_bias


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device_of(tensor)


def _one_head(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1)


def _backward(plan: str, *arguments: Any) -> None:
    getattr(_kernels("progressive_attention_backward"), plan)(*arguments).run()


def _sddmm(q: Tensor, k: Tensor, index: Tensor, out: Tensor) -> None:
    _kernels("sddmm").plan_sddmm(q, k, index, out).run()


def _spmm(a: Tensor, v: Tensor, index: Tensor, out: Tensor, factor: float = 1.0) -> None:
    _kernels("spmm").plan_spmm(a, v, index, out, factor).run()


def _invert(index: Tensor, keys: int) -> InvertedIndex:
    windows, heads, queries, listed = index.shape
    both = windows * heads
    start = empty((both, keys + 1), torch.int32, index.device)
    entries = empty((both, queries * listed), torch.int32, index.device)
    cursor = empty((both, keys), torch.int32, index.device)
    _kernels("spmm").plan_invert_index(index, start, cursor, entries).run()
    return InvertedIndex(start, entries)


def _spmm_transpose(a: Tensor, x: Tensor, inverted: InvertedIndex, out: Tensor, factor: float = 1.0) -> None:
    _kernels("spmm").plan_spmm_transpose(a, x, *inverted, out, factor).run()
