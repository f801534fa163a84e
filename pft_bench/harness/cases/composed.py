"""The same sparse layer composed of public operators: what someone without these kernels would write.

Two ways to the logits: `torch.sparse.sampled_addmm` on the kept positions (`composed-sampled`), or the dense product
and a gather (`composed-dense`). The rest is the same: bias, softmax, `topk` where entries are dropped, `embedding_bag`
over the kept values. What depends on the index alone is prepared beforehand and not timed: the sparsity pattern with
the earlier logits, 64-bit indices, the flattened rows of the values, and the rows of the bias table. That is as it is
where the layer before kept all its entries, and errs on the side of the composition elsewhere. The `-fresh` ones
prepare it in the timed call, from the same inputs as our layers get: as it is after a layer that has selected.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ...reference import Layer, relative_position
from ..check.operator import in_float64
from ..check.result import CheckResult, within
from ..check.selection import structure, summary
from ..check.spot import spot_gradients, spot_layer
from ..measure.contender import Call
from ..record.yardsticks import COMPOSED as COMPOSED
from ..record.yardsticks import DENSE as DENSE
from ..record.yardsticks import FRESH as _FRESH
from ..record.yardsticks import SAMPLED
from .gradients import GradientCall, ones_like_index

Output = tuple[Tensor, Tensor | None, Tensor]
"""out [W, H, N, D], kept positions [W, H, N, K] int64 (any order; None: all candidates), their logits relative to the
row's maximum.
"""


@cache
def _relative_positions(window_size: int) -> Tensor:
    """Rows of the bias table for all pairs of tokens, which every model of this kind keeps."""
    token = torch.arange(window_size**2)
    return relative_position(window_size, token.unsqueeze(-1), token)


class Composition:
    """One sparse layer (`layer.index` and `layer.logits` given), its untimed preparations done."""

    def __init__(self, layer: Layer) -> None:
        assert layer.index is not None
        self.layer = layer
        self.index = layer.index.long()
        windows, heads, queries, _ = layer.q.shape
        self.first_row = torch.arange(windows * heads).view(windows, heads, 1, 1) * layer.k.shape[2]
        self.rows = None if layer.selects else self._rows(self.index)  # of all candidates
        relative = _relative_positions(math.isqrt(queries))
        rows = relative.expand(windows, heads, -1, -1).gather(-1, self.index)
        self.table_rows = rows.transpose(0, 1).reshape(heads, -1)

    def _rows(self, positions: Tensor) -> Tensor:
        """Rows of all window-heads' values together, [W * H * N, K], for positions [W, H, N, K]."""
        return (positions + self.first_row).view(-1, positions.shape[-1])

    def bias_of(self, table: Tensor) -> Tensor:
        """Bias of the candidates [W, H, N, C] from the table [T, H]."""
        windows, heads, queries, candidates = self.index.shape
        kept = table.T.contiguous().gather(-1, self.table_rows)
        return kept.view(heads, windows, queries, candidates).transpose(0, 1)

    def finish(self, z: Tensor, v: Tensor) -> Output:
        """Softmax, selection and the sum of values, from the logits [W, H, N, C]."""
        positions = None
        if self.rows is None:
            kept, places = z.topk(self.layer.topk, dim=-1, sorted=False)
            positions = self.index.gather(-1, places)
            rows, relative = self._rows(positions), kept - kept.amax(-1, keepdim=True)
            weights = (kept - z.logsumexp(-1, keepdim=True)).exp()
        else:
            rows, relative = self.rows, z - z.amax(-1, keepdim=True)
            weights = relative.softmax(-1)
        out = functional.embedding_bag(
            rows,
            v.reshape(-1, v.shape[-1]),
            per_sample_weights=weights.view_as(rows),
            mode="sum",
        )
        return out.view(*z.shape[:3], -1), positions, relative

    def dense(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, logits: Tensor) -> Output:
        """The dense product, then a gather; differentiable in all arguments."""
        z = ((q * self.layer.scale) @ k.mT).gather(-1, self.index) + logits
        return self.finish(z if bias is None else z + self.bias_of(bias), v)

    def sampled(self, *, check: bool = True) -> Callable[[], Output]:
        """`sampled_addmm` adds the products to the pattern's values, which are the earlier logits."""
        layer = self.layer
        windows, heads, queries, dim = layer.q.shape
        keys, candidates = layer.k.shape[2], self.index.shape[-1]
        batch = windows * heads
        starts = torch.arange(0, queries * candidates + 1, candidates, dtype=torch.int32)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                starts.expand(batch, -1).contiguous(),
                self.index.int().view(batch, -1),
                layer.logits.reshape(batch, -1),  # type: ignore[union-attr]
                (batch, queries, keys),
                check_invariants=check,
            )

        def call() -> Output:
            q = layer.q.reshape(batch, queries, dim)
            k = layer.k.reshape(batch, keys, dim)
            z = torch.sparse.sampled_addmm(pattern, q, k.mT, beta=1.0, alpha=layer.scale).values()
            z = z.view(windows, heads, queries, candidates)
            return self.finish(z if layer.bias is None else z + self.bias_of(layer.bias), layer.v)

        return call


def inference_call(name: str, layer: Layer) -> Call:
    """The layer's forward by one of the compositions."""
    if name in _FRESH:
        return lambda: _prepared(_FRESH[name], layer, check=False)()
    return _prepared(name, layer, check=True)


def _prepared(name: str, layer: Layer, *, check: bool) -> Call:
    """`check`: whether PyTorch looks through the sparsity pattern that it is given."""
    composed = Composition(layer)
    if name == SAMPLED:
        return composed.sampled(check=check)
    assert layer.logits is not None
    return lambda: composed.dense(layer.q, layer.k, layer.v, layer.bias, layer.logits)  # type: ignore[arg-type]


class GradientsOfDense(GradientCall):
    """Its gradients by autograd. Only the dense way: `sampled_addmm` has no gradient for batched CSR here."""

    def __init__(self, layer: Layer, grad_out: Tensor, mode: str) -> None:
        self.layer, self.grad_out = layer, grad_out
        composed = Composition(layer)
        names = [name for name in ("q", "k", "v", "bias", "logits") if getattr(layer, name) is not None]
        leaf: dict[str, Tensor] = {name: getattr(layer, name).detach().requires_grad_() for name in names}
        self._positions: Tensor | None = None

        def forward() -> list[Tensor]:
            out, positions, after = composed.dense(
                leaf["q"], leaf["k"], leaf["v"], leaf.get("bias"), leaf["logits"]
            )
            self._positions = composed.index if positions is None else positions
            return [out, after]

        super().__init__(
            mode, forward, list(leaf.values()), lambda made: [grad_out, torch.ones_like(made[1])]
        )

    def judge(self, output: object, head: int | None = None) -> list[CheckResult]:
        """The gradients of the last call against float64, given what its forward pass has kept."""
        assert self._positions is not None
        kept = self._positions.sort(-1).values
        return spot_gradients(self.layer, kept, self.grad_out, ones_like_index(kept), output, head)

    def forget(self) -> None:
        """Let go of the graph and of what was kept."""
        super().forget()
        self._positions = None


def with_what_it_prepares(name: str, layer: Layer) -> Layer:
    """The layer with an index (and earlier logits, where they are part of a pattern) of its own, which do not change:
    what is prepared from them is not timed.
    """
    if name in _FRESH or layer.index is None or layer.logits is None:
        return layer
    return layer.with_tensors(index=layer.index.clone(), logits=layer.logits.clone())


def read_in_call(name: str, layer: Layer) -> dict[str, Tensor]:
    """The inputs that the timed call reads, and that may change between calls."""
    prepared = set() if name in _FRESH else {"index", "logits"} if name == SAMPLED else {"index"}
    return {key: tensor for key, tensor in layer.tensors().items() if key not in prepared}


def spot(layer: Layer, output: object, head: int | None = None) -> list[CheckResult]:
    """A look at the call's own output; what it keeps comes in any order."""
    out, positions, relative = cast(Output, output)
    kept = out.new_empty((*out.shape[:-1], 0), dtype=torch.int64) if positions is None else positions
    return spot_layer(layer, (out, kept, relative, None), head, any_order=True)


def check_inference(layer: Layer, call: Call) -> Sequence[CheckResult]:
    """The call's own output against float64, on its own selection."""
    out, positions, relative = cast(Output, call())
    order = (layer.index.long() if positions is None else positions).sort(-1)  # type: ignore[union-attr]
    kept, relative = order.values, relative.gather(-1, order.indices)
    results = [structure(layer, kept)] if layer.selects else []
    if any(not result.passed for result in results):
        return results
    done, choices = in_float64(layer, kept)
    results += [summary(kept, choices)] if layer.selects else []
    if any(not result.passed for result in results):
        return results
    exact, bound = (
        torch.cat([getattr(d.out, part) for d in done]).view(out.shape) for part in ("value", "bound")
    )
    handed = [
        torch.cat([getattr(d.relative, part) for d in done]).view(kept.shape) for part in ("value", "bound")
    ]
    return [
        *results,
        within("composed out", out, exact, bound),
        within("composed logits", relative, handed[0], handed[1]),
    ]


def check_training(layer: Layer, call: Call, grad_out: Tensor) -> Sequence[CheckResult]:
    """Its forward as above, and its gradients against autograd of the same in float64, relative in norm."""
    tensors = {name: value for name, value in vars(layer).items() if isinstance(value, Tensor)}
    wide = {name: value.double() for name, value in tensors.items() if value.is_floating_point()}
    exact = GradientsOfDense(layer.with_tensors(**wide), grad_out.double(), "train")()
    results = list(check_inference(layer, inference_call(DENSE, layer)))
    for number, (one, other) in enumerate(zip(call(), exact, strict=True)):  # type: ignore[call-overload]
        error = float((one.double() - other).norm() / other.norm())
        results.append(
            CheckResult(f"composed gradient {number}", error / 1e-4, f"relative error {error:.2g}")
        )
    return results
