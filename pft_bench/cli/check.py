"""`pft-bench check`: correctness alone, for any available backend, without timing."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..common.terminal import Console, line
from ..common.text import counted, in_short
from . import options
from .work import at_work

if at_work(__name__):
    import torch

    from ..backends import backends, get, unavailable
    from ..harness.cases.settings import resolve_device
    from ..harness.check import CheckResult, check_layer, check_product, check_ties
    from ..harness.measure.admission import rejection_of
    from ..harness.measure.process_state import holding_functions, unchanged
    from ..harness.problem import Problem
    from ..harness.sweep import load_plugins
    from ..ops.progressive_attention import REGION_PENALTY

DTYPES = ("float32", "float16", "bfloat16")


class Found(NamedTuple):
    """The result of one check of one case; `kind` is the name of the check, which all cases share."""

    kind: str
    result: CheckResult


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
        layer = problem.layer(device)
        results = check_layer(get(backend), layer, train=train)
        if layer.index is None:  # dense layers of shifted windows have a mask as well
            labels = torch.arange(problem.tokens, device=device) * 3 // problem.tokens
            region = torch.stack((torch.zeros_like(labels), labels)).to(torch.uint8)
            masked = replace(layer, region=region, region_penalty=REGION_PENALTY)
            results += check_layer(get(backend), masked, train=train)
        return results
    return check_product(get(backend), problem.op, problem.inputs(device), train=train)


def check(
    backend: Annotated[list[str], typer.Option(help="Backend to check. Repeatable. Default: all.")] = [],  # noqa: B006 - typer reads it, nobody writes it
    dtype: Annotated[list[str], typer.Option(help="Repeatable. Default: every dtype a backend has.")] = [],  # noqa: B006
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a window (a square number has a bias table).")
    ] = 64,
    head_dim: Annotated[list[int], typer.Option(min=1, help="Channels of a head. Repeatable.")] = [13, 40],  # noqa: B006
    device: options.Device = "auto",
    plugin: options.Plugins = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Number of random seeds.")] = 2,
    verbose: Annotated[
        bool, typer.Option(help="Print every check, not only the worst of each kind that failed, or of all.")
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
            with holding_functions():
                results, lacks, raised = _checked(name, kind, device, tokens, head_dim, seeds)
            for reason, cases in lacks.items():
                console.print(f"{name} {kind}: skipped in {counted(cases, 'case')}: {reason}")
            if results or raised:
                wrong += _print(console, f"{name} {kind}", results, raised, verbose=verbose)
    if wrong:
        raise typer.Exit(1)


def _checked(
    name: str, kind: str, device: str, tokens: int, head_dim: Sequence[int], seeds: int
) -> tuple[list[Found], Counter[str], Counter[str]]:
    """All checks of a backend in a dtype: their results, how often it lacked what, and what it raised how often."""
    results: list[Found] = []
    lacks: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    for seed, dim in product(range(seeds), head_dim):
        for problem in problems(tokens, dim, kind, seed):
            # without its gradients where the backend has none
            checks = [partial(check_problem, name, problem, device, train=train) for train in (True, False)]
            what = f"{name}.{problem.op}"
            results += _attempt(checks, what, _describe(problem), lacks, raised)
    if not get(name).composite:
        ties = partial(check_ties, get(name), getattr(torch, kind), device)
        results += _attempt([ties], f"{name}.attention", "ties", lacks, raised)
    return results, lacks, raised


def _attempt(
    checks: Sequence[Callable[[], Sequence[CheckResult]]],
    what: str,
    case: str,
    lacks: Counter[str],
    raised: Counter[str],
) -> list[Found]:
    """The results of the first of `checks` that the backend has the ops for; `what` is its name and the op.

    What the backend lacks is counted in `lacks`, any other error and a process that was changed in `raised`, as in
    `run`: it ends neither the other cases nor the command, and the next of `checks`, which asks for less, is made all
    the same.
    """
    found: Sequence[CheckResult] = []
    missing, wrong = set[str](), set[str]()
    for check in checks:
        try:
            with unchanged("during its check", first_call=True):
                found = check()
            break
        except Exception as error:
            rejection = rejection_of(error)
            if rejection.status == "skipped":
                missing.add(rejection.reason)
            elif rejection.status == "failed":
                wrong.add(f"{what}: {rejection.reason}".partition("\n")[0])
            else:
                wrong.add(_raised(what, error))
    lacks.update(missing)
    raised.update(wrong)
    return [Found(one.name, replace(one, name=f"{one.name} {case}")) for one in found]


def _raised(what: str, error: Exception) -> str:
    """What a backend raised, and where: the last line of the module of its class that the error went through."""
    backend = what.rpartition(".")[0]
    source = getattr(sys.modules.get(type(get(backend)).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == source]
    subject = f"{backend}.{own[0].name}" if own else f"the check of {what}"
    at = (own or frames)[-1]
    return (
        f"{subject} raised {type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {in_short(error)}"
    )


def _describe(problem: Problem) -> str:
    step = f"{problem.candidates}->{problem.kept}" if problem.op == "attention" else f"K={problem.kept}"
    return f"{step} D={problem.head_dim} seed={problem.seed}"


def _print(console: Console, what: str, found: list[Found], raised: Counter[str], *, verbose: bool) -> int:
    """The number of checks that failed; without `verbose` the worst of each kind is shown, and how many more."""
    bad = [one for one in found if not one.result.passed]
    wrong, total = len(bad) + raised.total(), len(found) + raised.total()
    mark = ("FAILED", "bold red") if wrong else ("ok", "green")
    console.print(line(f"{what}: ", mark, f", {total - wrong} of {total} checks passed"))
    for message, cases in raised.items():
        console.print(f"  {message} ({counted(cases, 'case')})")
    worst: dict[str, Found] = {}
    for one in sorted(bad, key=lambda one: -one.result.worst):
        worst.setdefault(one.kind, one)
    if not wrong and not verbose:
        console.print(f"  nearest to its bound: {max((one.result for one in found), key=lambda r: r.worst)}")
    for one in found if verbose else worst.values():
        console.print(f"  {one.result}")
    if not verbose and len(bad) > len(worst):
        console.print(f"  and {len(bad) - len(worst)} more: --verbose")
    return wrong
