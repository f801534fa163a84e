"""The mutation score: plant each wrong kernel and timer, let the harness's own checks look, and see who is caught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..check import check_layer, check_product, check_ties
from ..check.result import without_checks
from ..inputs import layer, product
from ..measure.audit import audit
from ..measure.results import CheckOutcome
from .cheating import HONEST, rejections
from .cheats import Cheat, tried
from .kernels import LAYERS, PLANTED
from .mutant import GUARDS, Mutant, Planted
from .timers import RIGHT_TIMERS, TIMERS, PlantedTimer


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant. `killed_by` names every check that failed; `skipped` says why it was not tried."""

    name: str
    target: str
    killed_by: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def killed(self) -> bool:
        """Whether the check it targets saw it."""
        return self.target in self.killed_by


def check_kernel(mutant: Mutant, step: str, device: str = "cpu") -> list[CheckOutcome]:
    """The checks that a backend has to pass at a step, before it may be timed."""
    if step == "ties":
        return list(check_ties(mutant, torch.float32))
    if step == "sddmm":
        inputs = {name: tensor.to(device) for name, tensor in product("sddmm", 2, 9, 21, 13, 7).items()}
        return list(check_product(mutant, "sddmm", inputs))
    made = layer(**LAYERS[step.removesuffix(", gradients")])  # type: ignore[arg-type]
    return list(check_layer(mutant, made, train=step.endswith("gradients")))


def _failed(found: Sequence[CheckOutcome]) -> tuple[str, ...]:
    # one name for the ten steps of the ties
    names = [item.name for item in found if not item.passed]
    return tuple(
        dict.fromkeys("attention ties" if name.startswith("attention ties") else name for name in names)
    )


def run_kernel(planted: Planted, disabled: Sequence[str] = ()) -> Outcome:
    """Check one wrong kernel, with the named guards switched off."""
    target = planted.fails
    if planted.needs_gpu and not torch.cuda.is_available():
        return Outcome(planted.name, target, skipped="needs a GPU, and PyTorch sees none")
    beginnings = [beginning for guard in disabled for beginning in GUARDS[guard]]
    with without_checks(*beginnings):
        found = check_kernel(planted.mutant(), planted.step, "cuda" if planted.needs_gpu else "cpu")
        return Outcome(planted.name, target, _failed(found))


def run_timer(planted: PlantedTimer, disabled: Sequence[str] = ()) -> Outcome:
    """Audit one wrong timer, without the named questions."""
    found = [finding for finding in audit(*planted.make()) if finding.name not in disabled]
    return Outcome(planted.name, planted.fails[0], _failed(found))


def run_cheat(cheat: Cheat, mode: str, disabled: Sequence[str] = ()) -> Outcome:
    """Measure a kernel that cheats beside an honest one, which must get its time."""
    if cheat.lacks:
        return Outcome(f"{cheat.name}, {mode}", cheat.guards[0], skipped=cheat.lacks)
    found = rejections(cheat, mode, disabled)
    honest = found.pop(HONEST)
    if honest is not None:
        return Outcome(f"{cheat.name}, {mode}", cheat.guards[0], (f"the honest one: {honest.reason}",))
    (caught,) = found.values()
    target = cheat.guards[0]
    return Outcome(
        f"{cheat.name}, {mode}",
        target,
        (target,) if caught is not None and cheat.says in caught.reason else (),
    )


def run_mutants() -> Iterator[Outcome]:
    """All wrong kernels, then all that cheat, then all wrong timers."""
    for kernel in PLANTED:
        yield run_kernel(kernel)
    for cheat, mode in tried():
        yield run_cheat(cheat, mode)
    for timer in TIMERS:
        yield run_timer(timer)


def false_alarms() -> list[str]:
    """What the checks say against a right kernel at every step, and the audit against right timers: nothing."""
    steps = dict.fromkeys(planted.step for planted in PLANTED if not planted.needs_gpu)
    found = [f"{step}: {name}" for step in steps for name in _failed(check_kernel(Mutant(), step))]
    return found + [name for make in RIGHT_TIMERS for name in _failed(audit(*make()))]
