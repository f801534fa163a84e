"""The peak memory of one forward pass in a process of its own, next to its prediction."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from ...model import PFT, fill_with_generated_weights, forward_footprint, parameter_count, published_macs
from ...model.config import PFTConfig
from ..check import CheckResult, captured_layers, check_layers
from ..measure.memory import Peak, peak_process, resident_bytes
from ..record import Case, Flops, Memory, Record, Status
from .group import thread_count
from .image import BUNDLED, low_resolution


def predicted_process_bytes(
    config: PFTConfig,
    size_hw: tuple[int, int],
    backend: str,
    threads: int,
    *,
    process_bytes: int | None = None,
) -> int:
    """Predict the resident peak of a process that upscales one image: itself, the weights and `forward_footprint`.

    `process_bytes` is what the process holds without a model, libraries included; None: what this one does.
    """
    if process_bytes is None:
        process_bytes = warm_process_bytes()
    weights = (
        4 * parameter_count(config) + 8 * config.window_size**4
    )  # the published index of bias rows is int64
    return (
        process_bytes + weights + forward_footprint(config, size_hw, backend=backend, threads=threads).bytes
    )


def measure_footprint(case: Case, config: PFTConfig, environment: str, *, check: bool = True) -> Record:
    """Run `case` once in a fresh process: its record with the measured and the predicted peak, and without a time.

    Without `check`, the kernels are taken to be those of a record that is there: the peak is measured once more.
    """
    size_hw = case.shapes["height"], case.shapes["width"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            peak, checks, process_bytes = pool.submit(
                _forward_once, config, size_hw, case.backend, case.threads, check
            ).result()
        except BrokenProcessPool:
            return Record.without_result(
                case, environment, Status.CRASHED, "the process ended, most likely for lack of memory"
            )
    predicted = predicted_process_bytes(
        config, size_hw, case.backend, case.threads, process_bytes=process_bytes
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
    flops = Flops(paper_macs=published_macs(config, *size_hw))
    return Record.ok(case, environment, checks, memory=memory, flops=flops)


def footprint_case(
    preset: str, config: PFTConfig, schedule: str, size_hw: tuple[int, int], backend: str, threads: int
) -> Case:
    """The case of one forward pass of which only the memory is of interest."""
    return Case(
        level="model",
        op="memory",
        backend=backend,
        device="cpu",
        dtype="float32",
        mode="infer",
        threads=threads,
        seed=0,
        shapes={"height": size_hw[0], "width": size_hw[1]},
        preset=preset,
        schedule=config.num_topk,
        options={"image": f"scikit-image:{BUNDLED}", "weights": "generated", "sched": schedule},
    )


def _forward_once(
    config: PFTConfig, size_hw: tuple[int, int], backend: str, threads: int, check: bool
) -> tuple[Peak, list[CheckResult], int]:
    """In the fresh process: the peak of one forward pass, checks of one window of each kind of layer, and what the
    process held before it had a model."""
    with thread_count(threads), torch.no_grad():
        process_bytes = warm_process_bytes()
        model = PFT.from_config(config, backend).eval()
        fill_with_generated_weights(model)
        x = low_resolution(size_hw)
        outputs = []
        peak = peak_process(lambda: outputs.append(model(x)))
        checks = [CheckResult("finite", 0.0 if outputs[0].isfinite().all() else math.inf, "all pixels")]
        if not check:
            return peak, checks, process_bytes
        # The same kernels on the same photograph, afterwards and on a corner: an oracle needs N x N maps.
        corner = x[..., : 2 * config.window_size, : 2 * config.window_size]
        layers = captured_layers(lambda: model(corner))
        return peak, checks + check_layers(backend, layers), process_bytes


@functools.cache
def warm_process_bytes() -> int:
    """What this process holds once it has what a first image loads: thread pools and the libraries of its operators."""
    tiny = PFTConfig(
        embed_dim=16, depths=(2,), num_heads=2, num_topk=(16, 8), window_size=4, upsampler="pixelshuffle"
    )
    with torch.no_grad():
        PFT.from_config(tiny, "dense").eval()(low_resolution((8, 8)))
    return resident_bytes()
