"""Level layer: one progressive-attention layer for every step (candidates -> kept) of the schedules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ... import ops
from ...backends import get
from ...reference import Layer
from ..check.operator import check_layer
from ..measure.contender import Call, Contender
from ..problem import Problem
from ..record import Case, Flops
from ..record.yardsticks import FACTORIZED
from . import composed
from .factorized import factorized_contender
from .gradients import gradient_call
from .group import Group
from .settings import BASELINE, Settings, layer_candidates


def problem_layer(problem: Problem, device: str = "cpu") -> Layer:
    """The layer that an attention problem describes, on its own inputs."""
    return problem.layer(device)


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
        layer, train = problem_layer(self.problem, self.settings.device), self.settings.mode != "infer"
        found = []
        for name in self.settings.backends:
            backend = get(name)
            call: Call = partial(backend.attention_forward, layer)
            if train:
                call = layer_gradients(layer, name, self.settings.mode)
            found.append(
                Contender(name, call, lambda _, b=backend: check_layer(b, layer, train=train))  # type: ignore[misc]
            )
        return found + [self._peer(name, layer) for name in self.peers]

    def _peer(self, name: str, layer: Layer) -> Contender:
        if name == FACTORIZED:
            return factorized_contender(name, layer)
        if self.settings.mode != "infer":
            grad_out = output_gradient(layer)
            call = composed.gradients_call(layer, grad_out, self.settings.mode)
            return Contender(name, call, lambda c: composed.check_training(layer, c, grad_out))
        return Contender(
            name, composed.inference_call(name, layer), lambda c: composed.check_inference(layer, c)
        )

    def counted(self, contender: Contender) -> Call:
        """A raw launcher is invisible to the counter: count the op around it."""
        if contender.name in self.peers or self.settings.mode != "infer":
            return contender.call
        layer = problem_layer(self.problem, self.settings.device)
        return partial(run_layer, layer, contender.name)

    def flops(self, name: str) -> Flops:
        """The roofline's counts of the problem."""
        return Flops(kernel_flops=self.problem.kernel_flops(), kernel_bytes=self.problem.kernel_bytes())


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


def layer_gradients(layer: Layer, backend: str, mode: str) -> Call:
    """Forward and backward (or the latter alone) through the public op, gradients of everything that has one."""
    names = [name for name in ("q", "k", "v", "bias", "logits") if getattr(layer, name) is not None]
    leaf: dict[str, Tensor] = {name: getattr(layer, name).detach().requires_grad_() for name in names}
    copy = layer.with_tensors(**leaf)
    grad_out = output_gradient(layer)

    def forward() -> list[Tensor]:
        out, after = run_layer(copy, backend)
        return [out] if after.logits is None else [out, after.logits]

    return gradient_call(
        mode, forward, list(leaf.values()), lambda made: [grad_out, *map(torch.ones_like, made[1:])]
    )


def layer_groups(settings: Settings) -> list[Group]:
    """Every distinct step (candidates -> kept) of the schedules, densest first."""
    steps = {step for schedule in settings.schedules for step in layer_candidates(settings.config, schedule)}
    return [LayerGroup(settings, *step) for step in sorted(steps, reverse=True)]
