"""Level layer: one progressive-attention layer for every step (candidates -> kept) of the schedules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ... import ops
from ...backends import get
from ...reference import Layer
from ..check.operator import check_layer
from ..check.result import CheckResult
from ..check.spot import spot_gradients, spot_layer, spot_output
from ..measure.contender import Call, Contender
from ..record import Case, Flops
from ..record.yardsticks import FACTORIZED
from . import composed
from .changing_inputs import Inputs
from .changing_work import ChangingWork
from .factorized import factorized_contender
from .gradients import GradientCall, ones_like_index
from .group import Group
from .settings import BASELINE, Settings


class LayerGroup(Group):
    """One step of a chain on synthetic activations: standard normal q, k, v and a random index.

    Beside the backends, sparse steps on a CPU in float32 run as compositions of public operators, and inference on any
    device as SST's attention over all tokens.
    """

    baseline = BASELINE

    def __init__(self, settings: Settings, candidates: int, kept: int) -> None:
        super().__init__(settings)
        self.problem = settings.problem("attention", candidates, kept)
        self.title = f"layer {candidates} -> {kept}"
        self.cost = 2.0
        self.peers: tuple[str, ...] = ()
        if settings.device == "cpu" and settings.dtype == "float32" and not self.problem.is_dense:
            infer = settings.mode == "infer"
            self.peers = composed.COMPOSED if infer else (composed.DENSE,)
        if settings.mode == "infer" and not self.problem.is_dense and self.problem.window_size:
            self.peers = (*self.peers, FACTORIZED)

    @property
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""
        problem, settings = self.problem, self.settings
        shapes = {**settings.shapes, "candidates": problem.candidates}
        names = (*settings.backends, *self.peers)
        return settings.cases("layer", "progressive_attention", names, shapes=shapes, k=problem.kept)

    def contenders(self) -> list[Contender]:
        """Raw launchers for inference; the differentiable op where gradients are wanted."""
        layer = self.problem.layer(self.settings.device)
        given, infer = layer.tensors(), self.settings.mode == "infer"
        if not infer:
            given["grad_out"] = output_gradient(layer)
        changing = Inputs(given, mixed=["logits"])
        make = self._forward if infer else self._gradients
        found = [make(name, layer, changing) for name in self.settings.backends]
        return found + [self._peer(name, layer) for name in self.peers]

    @staticmethod
    def _forward(name: str, layer: Layer, changing: Inputs) -> Contender:
        backend = get(name)
        return Contender(
            name,
            partial(backend.attention_forward, layer),
            lambda _: check_layer(backend, layer),
            work=ChangingWork(
                changing, lambda output, head: spot_layer(layer, output, head), own=name == BASELINE
            ),
        )

    def _gradients(self, name: str, layer: Layer, changing: Inputs) -> Contender:
        backend = get(name)
        call = LayerGradients(layer, name, self.settings.mode, changing.given["grad_out"])
        return Contender(
            name,
            call,
            lambda _: check_layer(backend, layer, train=True),
            work=call.work(changing, call.judge, own=name == BASELINE),
        )

    def _peer(self, name: str, layer: Layer) -> Contender:
        if name == FACTORIZED:
            return factorized_contender(name, layer, changes=True)
        if self.settings.mode != "infer":
            own, grad_out = composed.with_what_it_prepares(name, layer), output_gradient(layer)
            call = composed.GradientsOfDense(own, grad_out, self.settings.mode)
            given = {**composed.read_in_call(name, own), "grad_out": grad_out}
            return Contender(
                name,
                call,
                lambda c: composed.check_training(own, c, grad_out),
                work=call.work(Inputs(given, mixed=["logits"]), call.judge, own=True),
            )
        own = composed.with_what_it_prepares(name, layer)
        return Contender(
            name,
            composed.inference_call(name, own),
            lambda c: composed.check_inference(own, c),
            work=ChangingWork(
                Inputs(composed.read_in_call(name, own), mixed=["logits"]),
                lambda output, head: composed.spot(own, output, head),
                own=True,
            ),
        )

    def counted(self, contender: Contender) -> Call:
        """A raw launcher is invisible to the counter: count the op around it."""
        if contender.name in self.peers or self.settings.mode != "infer":
            return contender.call
        layer = self.problem.layer(self.settings.device)
        return partial(run_layer, layer, contender.name)

    def flops(self, name: str) -> Flops:
        """The roofline's counts of the problem."""
        return Flops.of([self.problem])


def run_layer(layer: Layer, backend: str) -> tuple[Tensor, ops.ChainState]:
    """The layer through the public op."""
    state = None
    if layer.index is not None:
        keys = layer.k.shape[2]
        state = ops.ChainState(index=layer.index, logits=layer.logits, num_keys=keys, checked=layer.index)
    return ops.progressive_attention(
        layer.q,
        layer.k,
        layer.v,
        topk=layer.topk,
        state=state,
        bias=layer.bias,
        scale=layer.scale,
        backend=backend,
    )


def output_gradient(layer: Layer) -> Tensor:
    """A fixed standard normal gradient of the layer's output."""
    generator = torch.Generator().manual_seed(1)
    shape = (*layer.q.shape[:3], layer.v.shape[-1])
    return torch.randn(shape, generator=generator).to(layer.q.dtype).to(layer.q.device)


class LayerGradients(GradientCall):
    """Forward and backward (or the latter alone) through the public op, gradients of everything that has one."""

    def __init__(self, layer: Layer, backend: str, mode: str, grad_out: Tensor) -> None:
        self.layer, self.grad_out = layer, grad_out
        names = [name for name in ("q", "k", "v", "bias", "logits") if getattr(layer, name) is not None]
        leaf: dict[str, Tensor] = {name: getattr(layer, name).detach().requires_grad_() for name in names}
        copy = layer.with_tensors(**leaf)
        self._chosen: Tensor | None = None
        self._logits: Tensor | None = None

        def forward() -> list[Tensor]:
            out, after = run_layer(copy, backend)
            self._chosen = after.index
            self._logits = None if after.logits is None else after.logits.detach()
            return [out] if after.logits is None else [out, after.logits]

        super().__init__(
            mode, forward, list(leaf.values()), lambda made: [grad_out, *map(torch.ones_like, made[1:])]
        )

    def judge(self, output: object, head: int | None = None) -> list[CheckResult]:
        """The gradients of the last call against float64, given what its forward pass has kept; in mode "train" its
        output and logits too.
        """
        kept = self._chosen if self.layer.selects else self.layer.index
        made = [
            item for out in self.made[:1] for item in spot_output(self.layer, out, kept, self._logits, head)
        ]
        return made + spot_gradients(self.layer, kept, self.grad_out, ones_like_index(kept), output, head)

    def forget(self) -> None:
        """Let go of the graph and of what was kept."""
        super().forget()
        self._chosen = self._logits = None


def layer_groups(settings: Settings) -> list[Group]:
    """Every distinct step (candidates -> kept) of the schedules, densest first."""
    steps = {
        step for schedule in settings.schedules for step in settings.config.along_chains(schedule.num_topk)
    }
    return [LayerGroup(settings, *step) for step in sorted(steps, reverse=True)]
