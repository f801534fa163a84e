"""`pft-bench check`: correctness alone, for any available backend, without timing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated

import typer

from ..common.terminal import Console, line
from . import options
from .work import at_work

if at_work(__name__):
    import torch

    from ..backends import backends, get, unavailable
    from ..harness.cases.layer import problem_layer
    from ..harness.cases.settings import resolve_device
    from ..harness.check import CheckResult, check_layer, check_product, check_ties, failures
    from ..harness.measure.contender import rejection_of
    from ..harness.measure.process import unchanged
    from ..harness.problem import Problem
    from ..harness.sweep import load_plugins
    from ..ops.progressive_attention import REGION_PENALTY

DTYPES = ("float32", "float16", "bfloat16")


def problems(tokens: int, head_dim: int, dtype: str, seed: int) -> list[Problem]:
    """Small problems that between them take every path: all K of a schedule, selection on and off, odd sizes."""
    steps = [(tokens, tokens)]
    kept = tokens
    while kept > 1:
        steps.append((kept, max(1, kept // 4)))
        kept = max(1, kept // 4)
        steps.append((kept, kept))
    made = []
    for candidates, keep in steps:
        shape = {
            "windows": 2,
            "heads": 3,
            "tokens": tokens,
            "head_dim": head_dim,
            "dtype": dtype,
            "seed": seed,
        }
        if candidates == keep:
            made += [Problem(op=op, candidates=keep, kept=keep, **shape) for op in ("sddmm", "spmm")]  # type: ignore[arg-type]
        made.append(Problem(op="attention", candidates=candidates, kept=keep, **shape))  # type: ignore[arg-type]
    return made


def check_problem(backend: str, problem: Problem, device: str, *, train: bool) -> list[CheckResult]:
    """One problem forward and, with `train`, backward."""
    if problem.op == "attention":
        layer = problem_layer(problem, device)
        results = check_layer(get(backend), layer, train=train)
        if layer.index is None:  # dense layers of shifted windows have a mask as well
            labels = torch.arange(problem.tokens, device=device) * 3 // problem.tokens
            region = torch.stack((torch.zeros_like(labels), labels)).to(torch.uint8)
            masked = replace(layer, region=region, region_penalty=REGION_PENALTY)
            results += check_layer(get(backend), masked, train=train)
        return results
    return check_product(get(backend), problem.op, problem.inputs(device), train=train)


def check(
    backend: options.Backends = [],  # noqa: B006 - typer reads it, nobody writes it
    dtype: Annotated[list[str], typer.Option(help="Repeatable. Default: every dtype a backend has.")] = [],  # noqa: B006
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a window (a square number has a bias table).")
    ] = 64,
    head_dim: Annotated[list[int], typer.Option(min=1, help="Channels of a head. Repeatable.")] = [13, 40],  # noqa: B006
    device: options.Device = "auto",
    plugin: options.Plugins = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Number of random seeds.")] = 2,
    verbose: Annotated[
        bool, typer.Option(help="Print every check, not only the worst of each backend.")
    ] = False,
) -> None:
    """Compare kernels with masked dense attention in float64: values, selection, gradients. Nothing is timed.

    Exit code 1 if anything is outside its bound.
    """
    console = Console()
    load_plugins(plugin)
    device = resolve_device(device)
    wrong = 0
    for name in backend or [row.name for row in backends() if row.available]:
        reason = unavailable(get(name))
        if reason is not None:
            raise ValueError(f"--backend {name} is not available: {reason}")
        if device not in get(name).devices:
            if backend:
                raise ValueError(f"--backend {name} takes no tensors on {device}")
            console.print(f"{name}: skipped, it takes tensors on {', '.join(sorted(get(name).devices))}")
            continue
        for kind in dtype or DTYPES:
            if getattr(torch, kind, None) not in get(name).dtypes:
                if dtype:
                    raise ValueError(f"--dtype {kind} is not one that backend {name!r} takes")
                continue
            results: list[CheckResult] = []
            lacks: Counter[str] = Counter()
            for seed, dim in product(range(seeds), head_dim):
                for problem in problems(tokens, dim, kind, seed):
                    # without its gradients where the backend has none
                    checks = [
                        partial(check_problem, name, problem, device, train=train) for train in (True, False)
                    ]
                    results += _attempt(checks, problem.op, _describe(problem), lacks)
            if not get(name).composite:
                results += _attempt(
                    [partial(check_ties, get(name), getattr(torch, kind), device)], "attention", "ties", lacks
                )
            for reason, cases in lacks.items():
                console.print(f"{name} {kind}: skipped in {cases} cases: {reason}")
            wrong += _print(console, name, kind, results, verbose=verbose) if results else 0
    if wrong:
        raise typer.Exit(1)


def _attempt(
    checks: Sequence[Callable[[], Sequence[CheckResult]]], op: str, what: str, lacks: Counter[str]
) -> list[CheckResult]:
    """The results of the first of `checks` that the backend has the ops for; what it lacks is counted in `lacks`.

    Any other error, and a process that was changed, is a result that failed, as in `run`: it ends neither the other
    cases nor the command, and the next of `checks`, which asks for less, is made all the same.
    """
    found: Sequence[CheckResult] = []
    reasons: dict[str, str] = {}
    for check in checks:
        try:
            with unchanged("during its check", first_call=True):
                found = check()
            break
        except Exception as error:
            rejection = rejection_of(error)
            reasons[rejection.reason] = rejection.status
    lacks.update({reason for reason, status in reasons.items() if status == "skipped"})
    failed = [
        CheckResult(op, math.inf, reason.partition("\n")[0])
        for reason, status in reasons.items()
        if status != "skipped"
    ]
    return [CheckResult(f"{one.name} {what}", one.worst, one.detail) for one in (*failed, *found)]


def _describe(problem: Problem) -> str:
    return f"{problem.candidates}->{problem.kept} D={problem.head_dim} seed={problem.seed}"


def _print(console: Console, name: str, dtype: str, results: list[CheckResult], *, verbose: bool) -> int:
    bad = failures(results)
    worst = max(results, key=lambda result: result.worst)
    mark = ("FAILED", "bold red") if bad else ("ok", "green")
    console.print(
        line(f"{name} {dtype}: ", mark, f", {len(results) - len(bad)} of {len(results)} checks passed")
    )
    for result in results if verbose else bad or [worst]:
        console.print(f"  {'' if verbose or bad else 'nearest to its bound: '}{result}")
    return len(bad)
