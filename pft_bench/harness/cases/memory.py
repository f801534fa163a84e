"""The peak memory of one forward pass in a process of its own, next to its prediction."""

from __future__ import annotations

import functools
import math

import torch

from ...model import (
    PFT,
    fill_with_generated_weights,
    forward_footprint,
    image_dtype,
    parameter_count,
    published_macs,
)
from ...model.config import PFTConfig
from ..check import CheckResult, captured_layers, check_layers
from ..measure.contender import Contender
from ..measure.memory import Peak, peak_process, resident_bytes
from ..record import Case, Flops, Memory, Record, Status
from .group import NOBODY, Group, GroupResult, Listener, Lost, explained, thread_count
from .image import BUNDLED, low_resolution
from .settings import Settings


def predicted_process_bytes(
    config: PFTConfig,
    size_hw: tuple[int, int],
    backend: str,
    threads: int,
    *,
    itemsize: int = 4,
    process_bytes: int | None = None,
) -> int:
    """Predict the resident peak of a process that upscales one image: itself, the weights and `forward_footprint`.

    `itemsize` is the size of a weight and of a channel of an activation in bytes.

    `process_bytes` is what the process holds without a model, libraries included; None: what this one does.
    """
    if process_bytes is None:
        process_bytes = warm_process_bytes()
    # The published index of bias rows is int64.
    weights = itemsize * parameter_count(config) + 8 * config.window_size**4
    found = forward_footprint(config, size_hw, backend=backend, threads=threads, itemsize=itemsize)
    return process_bytes + weights + found.bytes


class FootprintGroup(Group):
    """One forward pass of the last backend of the settings, whose memory alone is of interest: it gets no time.

    Without `check`, the kernels are taken to be those of a record that is there: the
    peak is measured once more.
    """

    cost = 1.0
    fresh = True

    def __init__(self, settings: Settings, *, check: bool = True) -> None:
        super().__init__(settings)
        self.baseline = settings.backends[-1]
        self.check = check
        self.config = settings.config.with_topk(settings.schedules[0].num_topk)
        self.title = "memory of {1}x{0}".format(*settings.lr_hw)

    @property
    def cases(self) -> dict[str, Case]:
        """The one case."""
        height, width = self.settings.lr_hw
        return self.settings.cases(
            "model",
            "memory",
            [self.baseline],
            shapes={"height": height, "width": width},
            preset=self.settings.preset,
            schedule=self.config.num_topk,
            options={
                "image": f"scikit-image:{BUNDLED}",
                "weights": "generated",
                "sched": self.settings.schedules[0].text,
            },
        )

    def contenders(self) -> list[Contender]:
        """Nothing is timed."""
        return []

    def flops(self, name: str) -> Flops:
        """The published count."""
        return Flops(paper_macs=published_macs(self.config, *self.settings.lr_hw))

    def run(self, environment: str, listener: Listener = NOBODY, lost: Lost | None = None) -> GroupResult:
        """Run it once: a record with the measured and the predicted peak."""
        name = self.baseline
        if name in (lost or {}):
            return GroupResult(explained(self, environment, (lost or {})[name]))
        with thread_count(self.settings.threads), torch.no_grad():
            process_bytes = warm_process_bytes()
            listener.on_turn(name, "memory, FLOPs and stages")
            model = PFT.from_config(self.config, name).eval()
            fill_with_generated_weights(model)
            model.to(self.settings.torch_dtype)
            x = low_resolution(self.settings.lr_hw).to(image_dtype(self.settings.torch_dtype))
            outputs = []
            peak = peak_process(lambda: outputs.append(model(x)))
            listener.on_turn(name, "check")
            checks = [CheckResult("finite", 0.0 if outputs[0].isfinite().all() else math.inf, "all pixels")]
            if self.check:
                # The same kernels on the same photograph, afterwards and on a corner: an oracle needs N x N maps.
                corner = x[..., : 2 * self.config.window_size, : 2 * self.config.window_size]
                checks += check_layers(name, captured_layers(lambda: model(corner)))
        return GroupResult([self._footprint_record(environment, peak, checks, process_bytes)])

    def _footprint_record(
        self, environment: str, peak: Peak, checks: list[CheckResult], process_bytes: int
    ) -> Record:
        settings, case = self.settings, self.cases[self.baseline]
        predicted = predicted_process_bytes(
            self.config,
            settings.lr_hw,
            case.backend,
            settings.threads,
            itemsize=settings.torch_dtype.itemsize,
            process_bytes=process_bytes,
        )
        wrong = [check for check in checks if not check.passed]
        if wrong:
            reason = "; ".join(f"{check.name}: {check.detail}" for check in wrong)
            return Record.without_result(
                case, environment, Status.FAILED, reason, checks=checks, predicted_peak_bytes=predicted
            )
        memory = Memory(
            peak_process_bytes=peak.bytes, peak_process_source=peak.source, predicted_peak_bytes=predicted
        )
        return Record.ok(case, environment, checks, memory=memory, flops=self.flops(self.baseline))


@functools.cache
def warm_process_bytes() -> int:
    """What this process holds once it has what a first image loads: thread pools and the libraries of its operators."""
    tiny = PFTConfig(
        embed_dim=16, depths=(2,), num_heads=2, num_topk=(16, 8), window_size=4, upsampler="pixelshuffle"
    )
    with torch.no_grad():
        PFT.from_config(tiny, "dense").eval()(low_resolution((8, 8)))
    return resident_bytes()
