"""The ladder: every rung, Triton, the published kernels and masked dense attention, timed by the sweep as `run` does.

One run folder for each dtype, because the roof that was measured with it is that dtype's. What tells most comes first,
so that a ladder that is cut is a useful record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from ...backends import get
from ...common.drafts import make_folder
from ...common.schedule import parse_schedule
from ...harness.cases import Group, Settings
from ...harness.cases.changing_inputs import Inputs
from ...harness.cases.changing_work import ChangingWork
from ...harness.cases.layer import LayerGroup
from ...harness.cases.op import OpGroup
from ...harness.cases.settings import BASELINE
from ...harness.check import check_product
from ...harness.check.spot import spot_transposed
from ...harness.measure.contender import Call, Contender
from ...harness.measure.rounds import Plan
from ...harness.record import Case, Mode, Record, Status
from ...harness.sweep import Shard, Sweep, SweepPlan, WorkersFailed
from ...insight.counts import formula_counts
from ...model import PFTConfig
from ...report.verify import verify_folder
from .checks import deciding_rungs, unavailable
from .running import RunningStep, Session

DTYPES = ("float16", "float32")
ROUNDS = Plan(rounds=10, max_rounds=20, budget_s=2.5)
REHEARSED = Plan(rounds=6, max_rounds=6, budget_s=0.05)
REHEARSED_MODEL = PFTConfig(
    embed_dim=16, depths=(2, 4), num_heads=2, num_topk=(16,) * 2 + (5,) * 4, window_size=4,
    convffn_kernel_size=3, mlp_ratio=2, upscale=2, upsampler="pixelshuffledirect",
)  # fmt: skip
REHEARSAL = {"rehearsal": "in the emulator: times mean nothing"}
TOO_SLOW = {("spmm_transpose", "plain")}
"""Rungs that teach and take seconds a call."""
Step = tuple[int, int]


class OutOfTime(Exception):
    """The step's time is up."""


class _Counted:
    """FLOPs by the formula alone: counting what PyTorch executes would draw all inputs again, seconds each."""

    def counted(self, contender: Contender) -> Call:
        """Nothing that could be counted."""
        return lambda: None


class LadderLayer(_Counted, LayerGroup):
    """One step of the schedule on the named backends."""

    def __init__(self, settings: Settings, step: Step, names: Sequence[str]) -> None:
        super().__init__(replace(settings, backends=(BASELINE, *names)), *step)
        self.peers = ()
        passes = "" if settings.mode == "infer" else f", {settings.mode}"
        self.title = f"{settings.dtype} {self.title}{passes}"

    @property
    def cases(self) -> dict[str, Case]:
        """As the level has them; those of a rehearsal say so."""
        return _marked(self.settings, super().cases)


class LadderProduct(_Counted, OpGroup):
    """One sparse product at one K on the named backends."""

    def __init__(self, settings: Settings, op: str, kept: int, names: Sequence[str]) -> None:
        super().__init__(replace(settings, backends=(BASELINE, *names)), "spmm", kept)
        self.problem = settings.problem(op, kept, kept)
        self.names = [BASELINE, *names]
        self.title = f"{settings.dtype} {op} K={kept}"

    @property
    def cases(self) -> dict[str, Case]:
        """As the level has them; those of a rehearsal say so."""
        return _marked(self.settings, super().cases)

    def contenders(self) -> list[Contender]:
        """Raw launchers; level op has no spmm_transpose of its own."""
        if self.problem.op != "spmm_transpose":
            return super().contenders()
        changing = Inputs(self.problem.inputs(self.settings.device))
        return [self._transposed(name, changing) for name in self.names]

    def _transposed(self, name: str, changing: Inputs) -> Contender:
        backend, given, keys = get(name), changing.given, self.problem.tokens
        call = partial(backend.spmm_transpose, given["a"], given["x"], given["index"], keys)
        return Contender(
            name,
            call,
            lambda _: check_product(backend, self.problem.op, given),
            work=ChangingWork(
                changing,
                lambda output, head: spot_transposed(changing.given, keys, output, head),
                own=name == BASELINE,
            ),
        )


def _marked(settings: Settings, cases: dict[str, Case]) -> dict[str, Case]:
    if settings.preset != "rehearsal":
        return cases
    return {name: replace(case, options={**case.options, **REHEARSAL}) for name, case in cases.items()}


# -- what is measured, in which order ----------------------------------------------------------------------------------


def ladder_settings(session: Session, dtype: str, mode: str = "infer") -> Settings:
    """The classical model at x2 with the paper's schedule; in a rehearsal, a model of windows of 16 tokens."""
    made = Settings.make(
        schedules=["paper"], preset_name="classical", scale=2, backends=[BASELINE], levels=["op", "layer"],
        device=session.device, dtype=dtype, lr_hw=session.lr_hw, plan=ROUNDS,
    )  # fmt: skip
    if session.rehearse:
        config = REHEARSED_MODEL
        schedule = parse_schedule("16,5", config.depths, config.window_size**2)
        made = replace(
            made, preset="rehearsal", config=config, schedules=(schedule,), lr_hw=(4, 4), plan=REHEARSED,
            threads=1,
        )  # fmt: skip
    return replace(made, mode=cast(Mode, mode))


def telling_first(steps: Sequence[Step], tokens: int) -> tuple[list[Step], list[Step]]:
    """The steps that stand for all of their kind, and the rest; each from the longest list to the shortest.

    The longest list that is kept whole, the dense step that selects, the dense one that keeps all, a short list.
    """
    ordered = sorted(set(steps), reverse=True)
    sparse = [step for step in ordered if step[0] < tokens and step[0] == step[1]]
    dense = [step for step in ordered if step[0] == tokens]
    first = [*sparse[:1], *dense[1:2], *dense[:1], *sparse[2:3]]
    return first, [step for step in ordered if step not in first]


@dataclass(frozen=True)
class LadderPart:
    """Groups of one dtype that are measured one after another."""

    settings: Settings
    groups: tuple[Group, ...]


def ladder_parts(session: Session) -> list[LadderPart]:
    """What tells most in each dtype, then the rest in each dtype, the backward passes last."""
    first, rest = [], []
    for dtype in DTYPES:
        settings, backward = (ladder_settings(session, dtype, mode) for mode in ("infer", "backward"))
        tokens = settings.config.window_size**2
        steps = settings.config.along_chains(settings.schedules[0].num_topk)
        telling, others = telling_first(steps, tokens)
        telling = telling[:2] if session.rehearse else telling
        kept = sorted({k for c, k in steps if c == k < tokens}, reverse=True)
        ops = [(op, k) for k in kept for op in ("spmm_transpose", "sddmm", "spmm")]
        first.append(LadderPart(settings, _groups(session, settings, telling, ops[:3])))
        more = _groups(session, settings, others, ops[3:]) + _groups(session, backward, telling, ())
        rest.append(LadderPart(settings, more))
    if session.rehearse:  # one of each kind, and of the other dtype what is enough to make a folder of
        wide = first[1].groups[:1] + rest[1].groups[-1:]
        return [first[0], LadderPart(first[1].settings, wide)]
    return first + rest


def _groups(
    session: Session, settings: Settings, steps: Sequence[Step], ops: Sequence[tuple[str, int]]
) -> tuple[Group, ...]:
    tokens = settings.config.window_size**2
    layers = (
        LadderLayer(settings, step, ladder_names(session, settings, "attention_forward", kind))
        for step in steps
        for kind in ("sparse" if step[0] < tokens else "dense",)
    )
    return *layers, *(LadderProduct(settings, op, k, ladder_names(session, settings, op)) for op, k in ops)


def ladder_names(session: Session, settings: Settings, op: str, layers: str = "any") -> list[str]:
    """Who is measured beside the baseline; rungs where there are several to choose from."""
    others = session.others("triton", "official")
    found = list(others)
    if unavailable(session.family) is None:
        rungs = rungs_of(session, settings, op, layers) if settings.mode == "infer" else []
        found = [session.family, *rungs, *others]
    return [name for name in found if settings.torch_dtype in get(name).dtypes]


def rungs_of(session: Session, settings: Settings, op: str, layers: str) -> list[str]:
    """Rungs of the family that decide an op, where there are several to choose from."""
    slow = {f"{session.family}-{rung}" for slow_op, rung in TOO_SLOW if slow_op == op}
    found = [
        name
        for name in deciding_rungs(session.family, op, layers)
        if name not in slow and settings.torch_dtype in get(name).dtypes
    ]
    return found if len(found) > 1 else []


# -- the step ----------------------------------------------------------------------------------------------------------


@dataclass
class _Watch:
    """A `pft_bench.harness.sweep.Watcher` that keeps each group's times, and ends the step when its time is up."""

    running: RunningStep

    def start(self, group: Group) -> None:
        """A group begins, if there is time."""
        self._require_time()
        self._started = time.monotonic()

    def progress(self, rounds: int, planned: int, doing: str, contender: str = "") -> None:
        """A group that is not done in time is not a result."""
        self._require_time()

    def finish(self, group: Group, records: Sequence[Record]) -> None:
        """Its records are on the disk."""
        wrong = [r for r in records if r.status not in (Status.OK, Status.SKIPPED)]
        detail = "; ".join(f"{r.case.backend} {r.status.value}: {r.reason}" for r in wrong)
        times = {r.case.backend: round(r.derived.median_s * 1e3, 4) for r in records if r.derived is not None}
        seconds = time.monotonic() - self._started
        self.running.record(group.title, "failed" if wrong else "ok", detail, seconds, median_ms=times)

    def say(self, text: str) -> None:
        """What a worker printed."""
        self.running.keep_output()

    def _require_time(self) -> None:
        if self.running.left_s <= 0:
            raise OutOfTime


def run_ladder(running: RunningStep) -> None:
    """Measure part by part, then hold every number of the folders against its raw samples."""
    session = running.session
    if (reason := unavailable(session.family)) is not None:
        running.record(f"backend {session.family}", "missing", reason)
    parts = ladder_parts(session)
    for part in parts:
        _run_part(running, part)
    done = {found["item"] for found in running.results()}
    for part in parts:
        for group in part.groups:
            if group.title not in done:
                running.record(group.title, "left out", "no time left")
    for dtype in DTYPES:
        folder = ladder_folder(session, dtype)
        if folder.is_dir():
            found = verify_folder(folder, formula=formula_counts)
            wrong = "; ".join(map(str, found.mismatches))
            running.record(f"verify {folder.name}", "failed" if wrong else "ok", wrong, values=found.values)


def ladder_folder(session: Session, dtype: str) -> Path:
    """The run folder of one dtype."""
    return session.out / f"ladder_{dtype}"


def _run_part(running: RunningStep, part: LadderPart) -> None:
    if running.left_s <= 0:
        return
    folder = make_folder(ladder_folder(running.session, part.settings.dtype))
    running.workers.timeout_s = min(60.0, running.left_s)
    groups = list(part.groups)
    sweep = Sweep(part.settings, folder, Shard(), running.workers, {})
    try:
        sweep.run(SweepPlan(groups, groups, groups, {}, ()), _Watch(running))
    except OutOfTime:
        pass
    except WorkersFailed as error:
        running.record(f"{part.settings.dtype} {part.settings.mode}: the machine", "failed", str(error))
    finally:
        (folder / ".lock-environment").unlink(missing_ok=True)
