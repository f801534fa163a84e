"""From tensors to the native CUDA module, for a GPU and for the emulator alike: both have the same functions.

Outputs and workspaces come from `empty`; what each launch computes stands in kernels/include/pft/cuda.h.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..common.native import load_native
from ..reference import Layer
from .base import (
    AttentionBackward,
    AttentionForward,
    Backend,
    Maybe,
    Rung,
    empty,
    empty_gradients,
    empty_outputs,
)

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
CHOOSE = -1  # the launcher takes the version that suits
# The launchers' numbers of the sparse products' versions, and of the ways in which a sparse layer meets its
# candidates: one by one, or picked from tensor-core tiles; and of how a float32 layer or spmm_transpose multiplies: by
# FFMA, or by tensor cores, each number as the sum of three of bfloat16.
VERSIONS = {"plain": 0, "resident": 1, "tiles": 2, "sorted": 3}
CANDIDATES = {"gather": 0, "tiles": 1}
FLOAT32 = {"ffma": 0, "split": 1}
_PRODUCTS = frozenset({"sddmm", "spmm", "spmm_transpose"})
_FORWARD = frozenset({"attention_forward"})
_TRANSPOSED = frozenset({"spmm_transpose"})
RUNGS = {
    "plain": Rung("a thread per output of each sparse product, as published", _PRODUCTS),
    "resident": Rung("sparse products out of shared memory", _PRODUCTS),
    "sorted": Rung("spmm_transpose of entries that are sorted by key", _TRANSPOSED),
    "gather": Rung("sparse layers gather their candidates one by one", _FORWARD, "sparse"),
    "tiles": Rung(
        "sparse products and layers by tensor-core tiles, float16 and bfloat16",
        _FORWARD | _PRODUCTS,
        "sparse",
    ),
    # of sparse layers it is what gather is
    "ffma": Rung(
        "float32 layers and spmm_transpose without tensor cores; sparse layers gather",
        _FORWARD | _TRANSPOSED,
        "dense",
    ),
    "split": Rung(
        "float32 layers and spmm_transpose on tensor cores, each number as the sum of three of bfloat16",
        _FORWARD | _TRANSPOSED,
    ),
}
_NOWHERE = (0, 0, (0, 0, 0))
_NO_INDEX = (0, 0)

TensorArg = tuple[int, int, tuple[int, int, int]]
IndexArg = tuple[int, int]


def _tensor(t: Tensor) -> TensorArg:
    """Address, dtype and strides of [W, H, rows, cols], or of [B, rows, cols] as B windows of one head."""
    s = t.stride()
    strides = (s[0], s[1], s[2]) if t.ndim == 4 else (s[0], 0, s[1])
    return t.data_ptr(), DTYPES[t.dtype], strides


def _index(index: Tensor | None) -> IndexArg:
    return _NO_INDEX if index is None else (index.data_ptr(), index.element_size())


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _loaded(name: str) -> ModuleType | Exception:
    """A native module, or why it does not load."""
    try:
        return load_native(name)
    except ImportError as error:
        return error


def missing_module(error: Exception) -> str:
    """Why a native module did not load: it was never built, or what the loader said."""
    if isinstance(error, ModuleNotFoundError):
        return "its kernels were not built with this installation"
    return f"its kernels do not load: {error}"


class CudaLaunches(Backend):
    """The ops on top of a native module; subclasses say which module and where a launch goes.

    Args:
        rung: one of RUNGS, for a backend that always takes it; None: the launchers choose.
    """

    composite = False
    dtypes = frozenset(DTYPES)
    rungs = RUNGS
    module: str
    """The native module: `_cuda`, `_cuda_emu` or `_cuda_count`."""

    def __init__(self, rung: str | None = None) -> None:
        self._native = _loaded(self.module)
        self._version = VERSIONS.get(rung or "", CHOOSE)
        self._candidates = CANDIDATES.get(rung or "", CHOOSE)
        self._float32 = FLOAT32.get(rung or "", CHOOSE)
        if rung is not None:
            self.name, self.rungs = f"{self.name}-{rung}", {}
            self.summary = f"{type(self).name}, always: {RUNGS[rung].summary}"
        if rung == "tiles":
            self.dtypes = self.dtypes - {torch.float32}
        if rung in FLOAT32:
            self.dtypes = frozenset({torch.float32})

    @property
    def version(self) -> int:
        """The launchers' number of what sddmm, spmm and spmm_transpose run."""
        return self._version

    @property
    def candidates(self) -> int:
        """The launchers' number of how a sparse layer meets its candidates."""
        return self._candidates

    @property
    def float32(self) -> int:
        """The launchers' number of how a float32 layer or spmm_transpose multiplies."""
        return self._float32

    def on_rung(self, rung: str) -> CudaLaunches:
        """The same kernels' family on one rung."""
        return type(self)(rung)

    def native(self) -> Any:
        """The native module."""
        return self._native

    def place(self, device: torch.device) -> tuple[int, int]:
        """Device number and current stream."""
        raise NotImplementedError

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """[B, N, K]: q . k at the index, in q's dtype."""
        out = empty(index.shape, q.dtype, q.device)
        self._sddmm(q, k, index, out)
        return out

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """[B, N, D]: rows of v weighted by a, in v's dtype."""
        out = empty((*index.shape[:-1], v.shape[-1]), v.dtype, v.device)
        self._multiply("spmm", a, v, index, v.shape[-2], None, out, 1.0)
        return out

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """[B, M, D]: rows of x weighted by a, summed by key, in x's dtype."""
        out = empty((x.shape[0], num_keys, x.shape[-1]), x.dtype, x.device)
        self._multiply("spmm_transpose", a, x, index, num_keys, None, out, 1.0)
        return out

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One launch; see `pft_bench.reference.attention` for what it computes."""
        out, new_index, new_logits, lse = empty_outputs(layer)
        if out.numel() or lse.numel():
            self.native().attention_forward(
                layer.sizes,
                (layer.scale, layer.region_penalty),
                _inputs(layer),
                _tensor(out),
                _index(new_index) if layer.selects else _NO_INDEX,
                new_logits.data_ptr() if new_logits.shape[-1] else 0,
                lse.data_ptr(),
                self.candidates,
                self.float32,
                self.place(out.device),
            )
        return out, new_index, new_logits, lse

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Maybe, new_index: Tensor, out: Tensor, lse: Tensor
    ) -> AttentionBackward:
        """A handful of launches, composed of the sparse products and the kernels that know softmax."""
        q, k, v, bias, index, logits = layer.q, layer.k, layer.v, layer.bias, layer.index, layer.logits
        grad_q, grad_k, grad_v = empty_gradients(layer)
        grad_bias = None if bias is None else empty(bias.shape, torch.float32, q.device)
        if not math.prod(layer.rows):
            for t in (grad_q, grad_k, grad_v, *(() if grad_bias is None else (grad_bias,))):
                t.zero_()
            return grad_q, grad_k, grad_v, grad_bias, None if logits is None else torch.zeros_like(logits)

        grad_out, out = _unit_stride(grad_out.to(v.dtype)), _unit_stride(out)
        if grad_logits is not None:
            grad_logits = grad_logits.contiguous() if grad_logits.shape[-1] else None
        place = self.place(q.device)
        delta = empty(lse.shape, torch.float32, q.device)
        self.native().attention_row_delta(
            layer.sizes, _tensor(grad_out), _tensor(out), delta.data_ptr(), place
        )

        if index is None and not layer.selects:
            self._dense(layer, grad_out, lse, delta, grad_q, grad_k, grad_v, grad_bias)
            return grad_q, grad_k, grad_v, grad_bias, None

        kept_index = new_index if layer.selects else index
        assert kept_index is not None
        # of a dense layer the kept ones as a sparse layer of them; the entries of the whole row through a dense pass
        listed = layer if index is not None else layer.with_tensors(index=kept_index)
        candidates = kept_index if index is None else index
        how = (self.candidates, self.float32)
        grad_a: Tensor | None = None
        if not self.native().attention_backward_splits(listed.sizes, DTYPES[q.dtype], bias is not None, *how):
            grad_a = empty(kept_index.shape, torch.float32, q.device)
            self._sddmm(grad_out, v, kept_index, grad_a)
        a_kept = empty(kept_index.shape, torch.float32, q.device)
        base_q: Tensor | None = None
        base_k: Tensor | None = None
        if index is None:
            base_q = empty(q.shape, torch.float32, q.device)
            base_k = empty(k.shape, torch.float32, q.device)
            self._dense(layer, None, lse, delta, base_q, base_k, None, grad_bias)
        g = empty(candidates.shape, torch.float32, q.device)
        self.native().attention_backward_sparse(
            listed.sizes,
            (layer.scale, layer.region_penalty),
            _inputs(listed),
            _tensor(grad_out),
            _address(grad_logits),
            _address(grad_a),
            lse.data_ptr(),
            0 if index is None else delta.data_ptr(),
            _index(new_index) if layer.selects and index is not None else _NO_INDEX,
            kept_index.shape[-1],
            g.data_ptr(),
            a_kept.data_ptr(),
            *how,
            place,
        )
        self._multiply("spmm", g, k, candidates, layer.keys, base_q, grad_q, layer.scale)
        self._multiply("spmm_transpose", g, q, candidates, layer.keys, base_k, grad_k, layer.scale)
        self._multiply("spmm_transpose", a_kept, grad_out, kept_index, layer.keys, None, grad_v, 1.0)
        if grad_bias is not None:
            self._bias_sparse(listed.sizes, candidates, g, grad_bias, accumulate=index is None)
        return grad_q, grad_k, grad_v, grad_bias, None if logits is None else g

    def bias_row_blocks(self, window_heads: int, queries: int) -> int:
        """Blocks per window-head that sum bias gradients: enough to fill a device, few enough to keep sums small."""
        return max(1, min(math.ceil(queries / 16), 256 // max(1, window_heads)))

    def _dense(
        self,
        layer: Layer,
        grad_out: Tensor | None,
        lse: Tensor,
        delta: Tensor,
        grad_q: Tensor,
        grad_k: Tensor,
        grad_v: Tensor | None,
        grad_bias: Tensor | None,
    ) -> None:
        windows, heads, queries = layer.rows
        row_blocks = self.bias_row_blocks(windows * heads, queries)
        entries = 0 if grad_bias is None else grad_bias.shape[0]
        partial = empty((windows * row_blocks, heads, entries), torch.float32, lse.device)
        place = self.place(lse.device)
        self.native().attention_backward_dense(
            layer.sizes,
            (layer.scale, layer.region_penalty),
            _inputs(layer),
            _NOWHERE if grad_out is None else _tensor(grad_out),
            lse.data_ptr(),
            delta.data_ptr(),
            _tensor(grad_q),
            _tensor(grad_k),
            _NOWHERE if grad_v is None else _tensor(grad_v),
            0 if grad_bias is None else partial.data_ptr(),
            row_blocks,
            self.float32,
            place,
        )
        if grad_bias is not None:
            self._bias_sum(partial, grad_bias, accumulate=False)

    def _bias_sparse(
        self, sizes: tuple[int, ...], index: Tensor, g: Tensor, grad_bias: Tensor, *, accumulate: bool
    ) -> None:
        groups = max(1, min(sizes[0], 64))
        partial = empty((groups, sizes[1], grad_bias.shape[0]), torch.float32, g.device)
        place = self.place(g.device)
        self.native().bias_gradient_sparse(
            sizes, _index(index), g.data_ptr(), groups, partial.data_ptr(), place
        )
        self._bias_sum(partial, grad_bias, accumulate=accumulate)

    def _bias_sum(self, partial: Tensor, grad_bias: Tensor, *, accumulate: bool) -> None:
        groups, heads, entries = partial.shape
        place = self.place(partial.device)
        self.native().bias_gradient_sum(
            groups, heads, entries, partial.data_ptr(), accumulate, grad_bias.data_ptr(), place
        )

    def _sddmm(self, q: Tensor, k: Tensor, index: Tensor, out: Tensor) -> None:
        if out.numel():
            sizes = _sparse_sizes(index, k.shape[-2], k.shape[-1])
            args = (sizes, _tensor(q), _tensor(k), _index(index), _tensor(out), 1.0)
            self.native().sddmm(*args, self._version_of("sddmm"), self.place(q.device))

    def _multiply(
        self,
        op: str,
        a: Tensor,
        x: Tensor,
        index: Tensor,
        keys: int,
        base: Tensor | None,
        out: Tensor,
        scale: float,
    ) -> None:
        """`base` + `scale` * what spmm or spmm_transpose makes of the rows of x."""
        if out.numel():
            sizes = _sparse_sizes(index, keys, x.shape[-1])
            args = (sizes, _tensor(a), _tensor(x), _index(index), _address(base), _tensor(out), scale)
            how = (self.float32,) if op == "spmm_transpose" else ()
            getattr(self.native(), op)(*args, self._version_of(op), *how, self.place(x.device))

    def _version_of(self, op: str) -> int:
        """`version` where it decides this product."""
        other = self.version == VERSIONS["sorted"] and op != "spmm_transpose"
        return CHOOSE if other else self.version


def _sparse_sizes(index: Tensor, keys: int, head_dim: int) -> tuple[int, ...]:
    windows, heads = (index.shape[0], index.shape[1]) if index.ndim == 4 else (index.shape[0], 1)
    return windows, heads, index.shape[-2], keys, head_dim, index.shape[-1]


def _inputs(layer: Layer) -> tuple[TensorArg, TensorArg, TensorArg, int, int, IndexArg, int]:
    rest = (_address(layer.bias), _address(layer.region), _index(layer.index), _address(layer.logits))
    return _tensor(layer.q), _tensor(layer.k), _tensor(layer.v), *rest
