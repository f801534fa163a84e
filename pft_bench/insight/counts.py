"""The counts of operations that belong to a case, computed anew from its parameters alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import ops
from ..backends import get, unavailable
from ..harness.cases.layer import run_layer
from ..harness.measure.flops import counted_flops
from ..harness.problem import OPS, Problem, parse_dtype
from ..harness.record import Case, Flops
from ..model import PFT, PRESETS, PFTConfig, published_macs
from ..model.config import OWN_PRESETS


def model_config(case: Case) -> PFTConfig | None:
    """The configuration of a model case, None where its preset is neither a published one nor this package's own."""
    known = PRESETS | OWN_PRESETS
    if case.preset not in known or case.schedule is None:
        return None
    return known[case.preset].with_topk(case.schedule)


def problems(case: Case) -> list[Problem]:
    """The attention or product problems of a case: one of an operator or a layer, one a layer of a model."""
    if case.work != "model":
        if case.k is None or (case.work != "layer" and case.op not in OPS):
            return []
        sizes = {name: case.shapes[name] for name in ("windows", "heads", "tokens", "head_dim")}
        op = "attention" if case.work == "layer" else case.op
        candidates = case.shapes.get("candidates", case.k)
        return [_problem(case, op, sizes, candidates, case.k)]
    config = model_config(case)
    if config is None:
        return []
    windows = -(-case.shapes["height"] // config.window_size) * -(-case.shapes["width"] // config.window_size)
    sizes = {
        "windows": windows,
        "heads": config.num_heads,
        "tokens": config.window_size**2,
        "head_dim": config.embed_dim // config.num_heads,
    }
    return [_problem(case, "attention", sizes, c, k) for c, k in config.along_chains(config.num_topk)]


def _problem(case: Case, op: str, sizes: dict[str, int], candidates: int, kept: int) -> Problem:
    return Problem(
        op=op, **sizes, candidates=candidates, kept=kept, dtype=case.dtype, mode=case.mode, seed=case.seed
    )


def formula_counts(case: Case) -> Flops | None:
    """`paper_macs`, `kernel_flops` and `kernel_bytes` of a case; None where its model is not known here."""
    found = problems(case)
    if not found:
        return None
    config = model_config(case) if case.work == "model" else None
    if config is None:
        return Flops.of(found)
    return Flops.of(found, published_macs(config, case.shapes["height"], case.shapes["width"]))


def recount(case: Case) -> int | str:
    """`counted_flops` of a case, counted again on tensors without data: nothing is computed.

    Words that say why where it cannot be: training, a peer from outside, a model or a backend that this machine does
    not know.
    """
    try:
        backend = get(case.backend)
    except (KeyError, ValueError):
        return f"{case.backend} is no backend that is registered here"
    if case.mode != "infer":
        return f"of mode {case.mode}; only inference is counted again"
    if case.device != "cpu" or case.device not in backend.devices:
        return f"of device {case.device}; only those of a CPU are counted again"
    if (reason := unavailable(backend)) is not None:
        return f"backend {case.backend} is not available here: {reason}"
    call = _model_call(case) if case.work == "model" else partial(_product_or_layer, case)
    if call is None:
        return f"{case.preset or case.op} is no model whose shape is known here"
    if case.work != "model" and not problems(case):
        return f"{case.op} is no op whose shape is known here"
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return counted_flops(call) or "PyTorch's counter knows none of their operators"


def _product_or_layer(case: Case) -> object:
    problem = problems(case)[0]
    if case.work == "layer":
        return run_layer(problem.layer(), case.backend)
    return getattr(ops, problem.op)(*problem.inputs().values(), backend=case.backend)


def _model_call(case: Case) -> Callable[[], object] | None:
    config = model_config(case)
    if config is None:
        return None
    dtype = parse_dtype(case.dtype)
    with torch.device("meta"):
        model = PFT.from_config(config, backend=case.backend).eval().to(dtype)

    def call() -> object:
        empty = model.to_empty(device="cpu")
        return empty(torch.empty(1, 3, case.shapes["height"], case.shapes["width"], dtype=dtype))

    return call
