"""The outcome of one check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

DISABLED: ContextVar[tuple[str, ...]] = ContextVar("disabled checks", default=())
"""Beginnings of the names of checks that pass whatever they find."""


@contextmanager
def without_checks(*beginnings: str) -> Iterator[None]:
    """Let every check whose name begins so pass: to show what a check is there for (`pft-bench selftest`), only."""
    token = DISABLED.set(beginnings)
    try:
        yield
    finally:
        DISABLED.reset(token)


@dataclass(frozen=True)
class CheckResult:
    """One comparison: `worst` is the largest error in units of what is allowed, so at most 1 passes."""

    name: str
    worst: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything stayed within its bound (NaN never does)."""
        disabled = DISABLED.get()
        return self.worst <= 1.0 or bool(disabled and self.name.startswith(disabled))

    def __str__(self) -> str:
        mark = "ok" if self.passed else "FAILED"
        if math.isinf(self.worst):  # no bound was there to be a part of
            return f"{self.name}: {mark}" + (f": {self.detail}" if self.detail else "")
        return f"{self.name}: {mark}, {self.worst:.3g} of the bound" + (
            f" ({self.detail})" if self.detail else ""
        )


def nothing(name: str) -> CheckResult:
    """A kernel returned None."""
    return CheckResult(name, math.inf, "None was returned, a tensor is expected")


def within(name: str, got: Tensor | None, exact: Tensor, bound: Tensor) -> CheckResult:
    """Compare `got` with `exact` elementwise; `bound` is the largest error allowed. Shapes must be equal."""
    if got is None:
        return nothing(name)
    if got.shape != exact.shape:
        return CheckResult(name, math.inf, f"shape {list(got.shape)}, expected {list(exact.shape)}")
    if got.numel() == 0:
        return CheckResult(name, 0.0, "empty")
    error = (got.double() - exact).abs()
    ratio = torch.where(error == 0, 0.0, error / bound)
    ratio = ratio.nan_to_num(nan=math.inf)  # NaN in the output, or 0/0 where nothing is allowed
    worst = float(ratio.max())
    if worst <= 1:
        return CheckResult(name, worst)
    bad = int((ratio > 1).sum())
    unwritten = got.isnan() & (ratio > 1)
    if unwritten.any():
        first = unwritten.nonzero()[0].tolist()
        return CheckResult(
            name,
            worst,
            f"{bad} of {ratio.numel()} entries off; {int(unwritten.sum())} were not written, or are NaN, the first at "
            f"{first} (outputs are filled with NaN beforehand)",
        )
    place = [int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape)]
    detail = (
        f"{bad} of {ratio.numel()} entries off; worst at {place}: "
        f"got {float(got[tuple(place)]):.6g}, expected {float(exact[tuple(place)]):.6g} "
        f"+- {float(bound[tuple(place)]):.2g}"
    )
    return CheckResult(name, worst, detail)


def rms(tensor: Tensor) -> float:
    """Root mean square, 0 for an empty tensor."""
    return float(tensor.double().pow(2).mean().sqrt()) if tensor.numel() else 0.0


def no_worse_than(name: str, got: Tensor | None, peer: Tensor, exact: Tensor, u: float) -> CheckResult:
    """The error of `got` is at most twice that of `peer`, a plain PyTorch computation in the same dtype.

    Both as root mean squares; errors below one rounding `u` of the result count as equal. The entries of a row share
    most of their error, so with only a few rows the yardstick itself is luck: those get ``1 + 10 / rows`` more. From 9
    rows on, two computations of equal error then part further in about one of 10,000 comparisons (the quantile
    of F with as many degrees of freedom on both sides).
    """
    if got is None:
        return nothing(name)
    if got.shape != exact.shape:
        return CheckResult(name, math.inf, f"shape {list(got.shape)}, expected {list(exact.shape)}")
    rows = max(1, got.shape[:-1].numel())
    allowed = 2 * (1 + 10 / rows) * max(rms(peer.double() - exact), u * rms(exact))
    error = rms(got.double() - exact)
    worst = math.inf if math.isnan(error) else error / allowed if allowed else 0.0 if error == 0 else math.inf
    return CheckResult(name, worst, f"rms error {error:.2g}, PyTorch's own {rms(peer.double() - exact):.2g}")


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Those that did not pass."""
    return [result for result in results if not result.passed]
