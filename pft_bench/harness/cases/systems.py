"""The compared systems on one photograph, interleaved: latency and memory in the same run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...apps.systems import PLAUSIBLE_DB, System, likeness_db, load_published, make_system
from ...model import PFT, generated_weights, preset, published_macs
from ..check.model import relative_error
from ..check.result import CheckResult
from ..measure.contender import Call, Contender
from ..record import Case, Flops
from .group import Group
from .image import low_resolution
from .settings import Settings

BACKEND_ERROR = 1e-3
"""Relative error between two backends of a whole model: selections of nearly equal entries differ."""


class SystemsGroup(Group):
    """Models of several systems, one image; PFT is the baseline. Weights are random where no file is given.

    A model passes its check when its image has the right size, is finite and comes out again the same; with weights of
    a file it must also look like its input, and PFT's must be that of masked dense attention.
    """

    baseline = "PFT"
    title = "compared systems"
    cost = 100.0

    def __init__(
        self, settings: Settings, systems: tuple[System, ...], weights: Mapping[str, Path] | None = None
    ) -> None:
        super().__init__(settings)
        self.systems = {system.name: system for system in systems if system.runs}
        self.weights = dict(weights or {})
        # The fastest backend that can run here; all others are plain PyTorch.
        self.backend = settings.backends[-1]

    @property
    def cases(self) -> dict[str, Case]:
        """System -> its case."""
        height, width = self.settings.lr_hw
        found = {}
        for name, system in self.systems.items():
            backend = system.code or self.backend
            (found[name],) = self.settings.cases(
                "model",
                "system",
                [backend],
                shapes={"height": height, "width": width},
                preset=system.preset,
                schedule=None if system.preset is None else preset(system.preset).num_topk,
                options={"system": name, "weights": self._weights_text(name)},
            ).values()
        return found

    def _weights_text(self, name: str) -> str:
        """ "random", or the file and a digest of it: other weights are another case."""
        file = self.weights.get(name)
        if file is None:
            return "random"
        return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"

    def contenders(self) -> list[Contender]:
        """The forward pass of every system, each made in its own turn: one that cannot be made is a row."""
        x = low_resolution(self.settings.lr_hw).to(self.settings.device, self.settings.torch_dtype)
        return [self._contender(system, x) for system in self.systems.values()]

    def _contender(self, system: System, x: Tensor) -> Contender:
        made: list[nn.Module] = []

        def prepare() -> None:
            if not made:
                made.append(self._model(system))

        def call() -> object:
            with torch.no_grad():
                return made[0](x)

        check = _checks(made, x, system.scale, trained=system.name in self.weights)
        return Contender(system.name, call, check, prepare=prepare)

    def _model(self, system: System) -> nn.Module:
        settings = self.settings
        torch.manual_seed(settings.seed)
        if system.preset is None:
            model = make_system(system)
        else:
            model = PFT.from_config(preset(system.preset), self.backend)
            model.load_state_dict(generated_weights(model))
        if system.name in self.weights:
            load_published(model, self.weights[system.name])
        return model.to(settings.device, settings.torch_dtype).eval()

    def flops(self, name: str) -> Flops:
        """The authors' convention, where it is known; what PyTorch counts is added by `run`."""
        system, size = self.systems[name], self.settings.lr_hw
        if system.preset is not None:
            return Flops(paper_macs=published_macs(preset(system.preset), *size))
        return Flops() if system.stated_macs is None else Flops(paper_macs=system.stated_macs(*size))


def _checks(
    made: Sequence[nn.Module], x: Tensor, scale: int, *, trained: bool
) -> Callable[[Call], list[CheckResult]]:
    """The check of the one model that will have been made."""

    def check(call: Call) -> list[CheckResult]:
        first, second = call(), call()
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        wanted = (1, 3, *(scale * side for side in x.shape[2:]))
        results = [
            _holds("size", tuple(first.shape) == wanted, f"{tuple(first.shape)}, expected {wanted}"),
            _holds("finite", bool(first.isfinite().all()), ""),
            _holds("repeatable", relative_error(second, first.double()) < 1e-5, ""),
        ]
        if trained and results[0].passed:
            found = likeness_db(first, x)
            detail = f"{found:.1f} dB against the input enlarged, expected above {PLAUSIBLE_DB:g} dB"
            results.append(_holds("plausible", found > PLAUSIBLE_DB, detail))
        (model,) = made
        if isinstance(model, PFT):
            own, model.backend = model.backend, "dense"
            dense = call()
            model.backend = own
            assert isinstance(dense, Tensor)
            error = relative_error(first, dense.double())
            results.append(CheckResult("as dense", error / BACKEND_ERROR, f"relative error {error:.2g}"))
        return results

    return check


def _holds(name: str, holds: bool, detail: str) -> CheckResult:
    return CheckResult(name, 0.0 if holds else math.inf, detail)
