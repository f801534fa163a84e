"""Measures a kernel that cheats beside one that does not, on a problem so small that it takes a moment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from ...backends import lent
from ...common.schedule import parse_schedule
from ...model import PFTConfig
from ..cases import Group, Settings, plan_groups
from ..check.result import without_checks
from ..measure.admission import rejection_of
from ..measure.contender import Contender
from ..measure.guards import GUARDS, without_guards
from ..measure.results import Rejection
from ..measure.rounds import Plan, measure
from ..measure.timer import CpuTimer
from ..measure.verified import Verified
from ..record import Mode
from .cheats import Cheat

TINY = PFTConfig(
    embed_dim=12,
    depths=(2, 2),
    num_heads=3,
    num_topk=(16, 16, 5, 5),
    window_size=4,
    convffn_kernel_size=3,
    mlp_ratio=2,
    upscale=2,
    upsampler="pixelshuffledirect",
)
PLAN = Plan(rounds=3, max_rounds=3, min_rounds=3)
BLOCK_S = 2e-4
HONEST = "dense"


class SeveralCalls(CpuTimer):
    """At least two calls in a sample, on the slowest machine: some cheats need a call after the first."""

    def calibrate(self, subject: Verified) -> int:
        """As many as a block takes, or two."""
        return max(2, super().calibrate(subject))


def tiny_settings(level: str, mode: Mode, backend: str) -> Settings:
    """One group of a level, on four windows of 16 tokens."""
    return Settings(
        preset="tiny_x2",
        config=TINY,
        schedules=(parse_schedule("16,5", TINY.depths, 16),),
        backends=(HONEST, backend),
        levels=(level,),
        device="cpu",
        dtype="float32",
        mode=mode,
        threads=torch.get_num_threads(),
        seed=0,
        lr_hw=(8, 8),
        image=None,
        weights=None,
        plan=PLAN,
    )


def rejections(cheat: Cheat, mode: str, without: Sequence[str] = ()) -> dict[str, Rejection | None]:
    """Contender -> why it has no time, of the cheat and of the honest kernel beside it."""
    with ExitStack() as stack:
        stack.enter_context(lent(cheat.kind))
        stack.enter_context(without_guards(*(name for name in without if name in GUARDS)))
        stack.enter_context(without_checks(*(name for name in without if name not in GUARDS), "\0"))
        stack.enter_context(torch.set_grad_enabled(mode != "infer"))
        settings = tiny_settings(cheat.level, mode, cheat.kind.name)  # type: ignore[arg-type]
        group = plan_groups(settings)[-1]
        contenders = [item for item in group.contenders() if item.name in (HONEST, cheat.kind.name)]
        timer = (SeveralCalls if cheat.level == "op" else CpuTimer)(BLOCK_S)
        found = measure(contenders, HONEST, PLAN, timer=timer)
        told = {name: item.rejection for name, item in found.contenders.items()}
        for contender in contenders if cheat.besides else ():
            told[contender.name] = told[contender.name] or _besides(group, contender)
    return told


def _besides(group: Group, contender: Contender) -> Rejection | None:
    """Why nothing could be measured beside the time."""
    try:
        group.besides(contender, [1.0])
    except Exception as error:
        return rejection_of(error)
    return None
