"""The attention mechanisms alone: what it costs to decide which tokens matter, and what to use them, at equal numbers.

Windows of the classical model (32 x 32 tokens, 6 heads, head_dim 40), standard normal inputs, all in one group:

- ``dense`` decides nothing and uses all tokens; ``rank-factorized`` too, with its positions inside the product (SST).
- ``compute-then-select`` computes all logits and keeps the K largest (DRSformer's rule).
- ``progressive`` has the K that the layer before kept, and computes their logits; ``progressive, halving`` has 2K and
  keeps K of them: the two kinds of layers in PFT's schedule.
- ``hashed`` sorts queries and keys by their hash, and sees K neighbours in the order (NLSA's rule).
- ``graph`` compares all tokens once for all heads, and bisects for each the similarity from which it has about K links
  in the mean (IPG's rule); it uses them as a mask over the dense product, as published. A block of IPG decides once
  for six layers, on two graphs.

Where logits are computed to decide, using them is softmax and the sum of K values; where a hash or a graph decides
without them, using means to compute them, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...apps.systems.ipg_graph import linked_attention, links
from ...backends import get
from ...model.layers import relative_position_index
from ...model.variants import hashed_neighbours
from ...reference import Layer, index_dtype
from ..check.model import relative_error
from ..check.result import CheckResult
from ..measure.contender import Call, Contender
from ..record import Case, Flops
from ..record.yardsticks import BASELINE, FACTORIZED
from .factorized import factorized_contender
from .group import Group
from .settings import Settings

KEPT = (16, 32, 64, 128, 256, 512)
"""Numbers of kept tokens, as far as they are fewer than a window has."""

GRAPH_SCALE = 10.0
"""What IPG multiplies similarities by before training."""

_FLOAT32 = 1e-5
"""Relative error in norm that float32 kernels keep here."""

_LOGITS = 1e-4
"""Error of a float32 logit: some hundred rounding units of the largest ones, which are near 10."""


@dataclass(frozen=True)
class Part:
    """One contender: a mechanism's way to decide, or to use, K tokens; `logits` are those that it computes of a row."""

    mechanism: str
    op: str
    kept: int
    logits: int

    @property
    def name(self) -> str:
        """Unique in the group."""
        return f"{self.mechanism}: {self.op} {self.kept}"


class MechanismsGroup(Group):
    """Every mechanism at every K of `kept`, in the same rounds; dense attention is the baseline."""

    title = "attention mechanisms"
    cost = 60.0

    def __init__(self, settings: Settings, kept: Sequence[int] = KEPT) -> None:
        super().__init__(settings)
        self.tokens = settings.shapes["tokens"]
        self.kept = [k for k in kept if k < self.tokens]
        self.backend = settings.backends[-1]
        self.parts = {part.name: part for part in self._parts()}
        self.baseline = next(iter(self.parts))

    def _parts(self) -> list[Part]:
        n = self.tokens
        found = [Part(BASELINE, "use", n, n), Part(FACTORIZED, "use", n, n)]
        for k in self.kept:
            found += [Part("compute-then-select", "decide", k, n), Part("compute-then-select", "use", k, 0)]
            found += [Part("progressive", "decide", k, k), Part("progressive", "use", k, 0)]
            if 2 * k < n:
                name = "progressive, halving"
                found += [Part(name, "decide", k, 2 * k), Part(name, "use", k, 0)]
            found += [Part("hashed", "decide", k, 0), Part("hashed", "use", k, k)]
            found += [Part("graph", "decide", k, 0), Part("graph", "use", k, n)]
        return found

    @property
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""
        return {
            name: next(
                iter(
                    self.settings.cases(
                        "op",
                        part.op,
                        [part.mechanism],
                        shapes=self.settings.shapes,
                        k=part.kept,
                        options={"kernels": self.backend, "logits": part.logits},
                    ).values()
                )
            )
            for name, part in self.parts.items()
        }

    def flops(self, name: str) -> Flops:
        """Two operations for each channel of each logit that is computed and of each value that is summed."""
        part, shapes = self.parts[name], self.settings.shapes
        summed = 0 if part.op == "decide" else part.kept
        rows = shapes["windows"] * shapes["heads"] * shapes["tokens"]
        return Flops(kernel_flops=2 * rows * shapes["head_dim"] * (part.logits + summed))

    def contenders(self) -> list[Contender]:
        """One for each part; those of a mechanism work on the same inputs."""
        makers: dict[str, Callable[[int], dict[str, Contender]]] = {
            "compute-then-select": lambda k: self._by_kernel("compute-then-select", self.tokens, k),
            "progressive": lambda k: self._by_kernel("progressive", k, k),
            "progressive, halving": lambda k: self._by_kernel("progressive, halving", 2 * k, k),
            "hashed": self._hashed,
            "graph": self._graph,
        }
        found = self._dense()
        for part in self.parts.values():
            if part.name not in found:
                found |= makers[part.mechanism](part.kept)
        return [found[name] for name in self.parts]

    def _layer(self, candidates: int, kept: int) -> Layer:
        problem = self.settings.problem("attention", candidates, kept)
        return problem.layer(self.settings.device)

    def _dense(self) -> dict[str, Contender]:
        layer, backend = self._layer(self.tokens, self.tokens), get(self.backend)
        dense, factorized = (f"{name}: use {self.tokens}" for name in (BASELINE, FACTORIZED))
        return {
            dense: Contender(
                dense, lambda: backend.attention_forward(layer), lambda call: check_kernel(layer, call)
            ),
            factorized: factorized_contender(factorized, layer),
        }

    def _by_kernel(self, mechanism: str, candidates: int, k: int) -> dict[str, Contender]:
        """Decide by the layer's kernel with values of one channel, which cost next to nothing."""
        backend, layer = get(self.backend), self._layer(candidates, k)
        thin = layer.with_tensors(v=layer.v[..., :1].contiguous())
        _, chosen, logits, _ = backend.attention_forward(thin)
        index = chosen if layer.selects else layer.index
        assert index is not None
        rows, values = logits.flatten(0, 1), layer.v.flatten(0, 1).contiguous()
        places = index.flatten(0, 1)

        def use() -> Tensor:
            return backend.spmm(rows.softmax(-1).to(values.dtype), values, places)

        decide, used = (f"{mechanism}: {op} {k}" for op in ("decide", "use"))
        return {
            decide: Contender(
                decide, lambda: backend.attention_forward(thin), lambda call: check_kernel(thin, call)
            ),
            used: Contender(used, use, lambda call: check_use(rows, values, places, call)),
        }

    def _hashed(self, k: int) -> dict[str, Contender]:
        backend, layer = get(self.backend), self._layer(self.tokens, self.tokens)

        def decide() -> Tensor:
            return hashed_neighbours(layer.q, layer.k, k).to(index_dtype(self.tokens))

        index = decide()
        logits = torch.zeros(index.shape, dtype=torch.float32, device=index.device)
        sparse = layer.with_tensors(index=index, logits=logits)
        sparse = Layer(**{**vars(sparse), "topk": k})
        first, second = (f"hashed: {op} {k}" for op in ("decide", "use"))
        return {
            first: Contender(first, decide, lambda call: check_hash(layer, k, call)),
            second: Contender(
                second, lambda: backend.attention_forward(sparse), lambda call: check_kernel(sparse, call)
            ),
        }

    def _graph(self, k: int) -> dict[str, Contender]:
        layer = self._layer(self.tokens, self.tokens)
        nodes = layer.q.transpose(1, 2).flatten(2).contiguous()  # all heads together, as a graph sees them
        generator = torch.Generator().manual_seed(self.settings.seed)
        weight = torch.rand(nodes.shape[:2], generator=generator).to(nodes)
        heads = layer.q.shape[1]
        scale = torch.full((heads, 1, 1), GRAPH_SCALE, dtype=nodes.dtype, device=nodes.device)
        bias = torch.zeros(heads, self.tokens, self.tokens, dtype=nodes.dtype, device=nodes.device)

        def decide() -> Tensor:
            return links(nodes, nodes, weight, k)

        linked = decide()

        def use() -> Tensor:
            return linked_attention(layer.q, layer.k, layer.v, linked, scale, bias)

        first, second = (f"graph: {op} {k}" for op in ("decide", "use"))
        return {
            first: Contender(first, decide, lambda call: check_links(nodes, k, call)),
            second: Contender(second, use, lambda call: check_linked(layer, linked, call)),
        }


def check_kernel(layer: Layer, call: Call) -> list[CheckResult]:
    """A layer's output, selection and logits against dense matrices in float64, one window after the other."""
    out, chosen, logits, _ = cast("tuple[Tensor, Tensor, Tensor, Tensor]", call())
    assert layer.bias is not None
    bias = layer.bias.double()[relative_position_index(math.isqrt(layer.k.shape[2]))].permute(2, 0, 1)
    error = inverted = apart = 0.0
    for number in range(layer.q.shape[0]):
        q, k, v = (x[number].double() for x in (layer.q, layer.k, layer.v))
        z = q @ k.mT * layer.scale + bias
        if layer.index is not None and layer.logits is not None:
            earlier = torch.full_like(z, -math.inf)
            z += earlier.scatter_(-1, layer.index[number].long(), layer.logits[number].double())
        weights, kept = z.softmax(-1), layer.index
        if layer.selects:
            kept = chosen
            mask = torch.zeros_like(z, dtype=torch.bool).scatter_(-1, chosen[number].long(), True)
            least, most = z.masked_fill(~mask, math.inf).amin(-1), z.masked_fill(mask, -math.inf).amax(-1)
            inverted = max(inverted, float((most - least).amax()))
            weights = weights * mask
        if kept is not None:
            exact = z.gather(-1, kept[number].long()) - z.amax(-1, keepdim=True)
            apart = max(apart, float((logits[number] - exact).abs().amax()))
        error = max(error, relative_error(out[number], weights @ v))
    return [
        _within("attention", error),
        CheckResult("selection", max(inverted, 0.0) / _LOGITS, f"largest inversion {inverted:.2g}"),
        CheckResult("logits", apart / _LOGITS, f"largest difference {apart:.2g}"),
    ]


def check_use(logits: Tensor, v: Tensor, index: Tensor, call: Call) -> list[CheckResult]:
    """Softmax of logits [B, N, K] times v [B, M, D] at `index`: against dense matrices in float64."""
    out, worst = cast(Tensor, call()), 0.0
    for one, values, places, made in zip(logits.double(), v.double(), index.long(), out, strict=True):
        weights = torch.zeros(one.shape[0], values.shape[0], dtype=torch.float64, device=one.device)
        worst = max(worst, relative_error(made, weights.scatter_(-1, places, one.softmax(-1)) @ values))
    return [_within("use", worst)]


def check_hash(layer: Layer, k: int, call: Call) -> list[CheckResult]:
    """K keys in each row: of the window, distinct, ascending."""
    index = cast(Tensor, call()).long()
    rows = bool((index.diff(dim=-1) > 0).all()) and index.shape == (*layer.q.shape[:3], k)
    inside = int(index.min()) >= 0 and int(index.max()) < layer.k.shape[2]
    return [CheckResult("hash", 0.0 if rows and inside else math.inf, f"keys {list(index.shape)}")]


def check_links(nodes: Tensor, degree: int, call: Call) -> list[CheckResult]:
    """Each node's links are its most similar ones in float64; their mean is as asked, to a quarter or to one."""
    linked = cast(Tensor, call())
    wide = torch.nn.functional.normalize(nodes.double(), dim=-1)
    similarity = wide @ wide.mT
    least = similarity.masked_fill(~linked, math.inf).amin(-1)
    most = similarity.masked_fill(linked, -math.inf).amax(-1)
    inverted = float((most - least).amax())
    mean = float(linked.sum(-1).double().mean())
    return [
        CheckResult("links", max(inverted, 0.0) / _FLOAT32, f"largest inversion {inverted:.2g}"),
        CheckResult(
            "degree", abs(mean - degree) / max(1, degree / 4), f"{mean:.1f} links in the mean, asked {degree}"
        ),
    ]


def check_linked(layer: Layer, linked: Tensor, call: Call) -> list[CheckResult]:
    """Softmax over the links alone, in float64."""
    q, k, v = (x.double() for x in (layer.q, layer.k, layer.v))
    cosine = (q @ k.mT) / (q.norm(dim=-1).unsqueeze(-1) * k.norm(dim=-1).unsqueeze(-2))
    exact = (GRAPH_SCALE * cosine).masked_fill(~linked.unsqueeze(1), -math.inf).softmax(-1) @ v
    return [_within("linked attention", relative_error(cast(Tensor, call()), exact))]


def _within(name: str, error: float) -> CheckResult:
    return CheckResult(name, error / _FLOAT32, f"relative error {error:.2g}")


def mechanism_groups(settings: Settings) -> list[MechanismsGroup]:
    """The one group of all mechanisms."""
    return [MechanismsGroup(settings)]
