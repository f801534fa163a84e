"""What one layer of progressive attention is given: the one place where its inputs are listed."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor


def window_side(tokens: int) -> int:
    """Side of a square window of `tokens` tokens, rounded down.

    A compiler may come with a symbol for `tokens`. It is to stand for that number alone: there is no root of a symbol.
    """
    return math.isqrt(operator.index(tokens))


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer for W windows of N queries and M keys, and H heads, as `reference.attention` specifies it.

    ``z = scale * q.k + bias - region_penalty * (regions differ) + logits`` over the candidates; the `topk` largest are
    kept. The chain is dense while `index` is None: then all M keys are candidates, and `logits` is None too.
    """

    q: Tensor
    """[W, H, N, Dk]; a chain of m dense layers passes their queries side by side, so that Dk = m * D."""
    k: Tensor
    """[W, H, M, Dk]."""
    v: Tensor
    """[W, H, M, Dv]."""
    bias: Tensor | None
    """Table [T, H] with T = (2w-1)^2, for windows of w x w = N = M tokens; float32 (float64 for float64)."""
    region: Tensor | None
    """Labels [P, N] uint8, window i uses row i % P; None where the chain is sparse."""
    index: Tensor | None
    """Candidates [W, H, N, C], distinct within a row, int16 (int32 beyond 32767 keys)."""
    logits: Tensor | None
    """Their logits of the layers before, [W, H, N, C], in the dtype of `bias`."""
    scale: float
    region_penalty: float
    topk: int

    @property
    def rows(self) -> tuple[int, int, int]:
        """(W, H, N)."""
        windows, heads, queries, _ = self.q.shape
        return windows, heads, queries

    @property
    def keys(self) -> int:
        """M."""
        return self.k.shape[2]

    @property
    def candidates(self) -> int:
        """C, or M where the chain is dense."""
        return self.keys if self.index is None else self.index.shape[-1]

    @property
    def selects(self) -> bool:
        """Whether some candidates are dropped."""
        return self.topk < self.candidates

    @property
    def kept(self) -> int:
        """Width of the new index: 0 where nothing is dropped, which means "unchanged"."""
        return self.topk if self.selects else 0

    @property
    def handed_on(self) -> int:
        """Width of the new logits: 0 where the chain stays dense."""
        return self.kept or (0 if self.index is None else self.candidates)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        """What native kernels are told: W, H, N, M, Dk, Dv, C, topk, window size (0: no bias), P (0: no regions)."""
        window_size = 0 if self.bias is None else window_side(self.keys)
        patterns = 0 if self.region is None else self.region.shape[0]
        dims = self.q.shape[-1], self.v.shape[-1]
        return *self.rows, self.keys, *dims, self.candidates, self.topk, window_size, patterns

    def arguments(self) -> tuple[Tensor | float | None, ...]:
        """All fields in order, as the op `pft_bench::progressive_attention` takes them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, of those that are there."""
        # not `vars(self)`, which the compiler of PyTorch 2.10 cannot look into
        every = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in every if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> Layer:
        """The same layer, `function` applied to each of its tensors."""
        return self.with_tensors(**{name: function(tensor) for name, tensor in self.tensors().items()})

    def with_tensors(self, **tensors: Tensor) -> Layer:
        """The same layer with some of its tensors replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def copied(self) -> Layer:
        """The same layer on tensors of its own, detached."""
        return self.map(lambda tensor: tensor.detach().clone())

    def window(self, i: int) -> Layer:
        """The layer of window `i` alone."""

        def row(tensor: Tensor) -> Tensor:
            at = i % tensor.shape[0]  # of the regions, which repeat
            return tensor[at : at + 1]

        each = {name: row(tensor) for name, tensor in self.tensors().items() if name != "bias"}
        return self.with_tensors(**each)
