"""A group: contenders that do the same work, checked, then timed in interleaved rounds against one baseline."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from ...backends import registered
from ..measure.admission import rejection_of
from ..measure.contender import Call, Contender
from ..measure.disturbance import ForeignLoad
from ..measure.flops import counted_flops
from ..measure.guards import active
from ..measure.memory import peak_allocated, peak_process, resident_bytes
from ..measure.process_state import holding_functions, unchanged
from ..measure.results import Rejection, RoundsResult, failures
from ..measure.rounds import OnTurn, Progress, frozen_heap, measure, nobody
from ..measure.timer import timer_for
from ..measure.verified import WrongResult
from ..record import Case, Flops, Memory, Record, Status
from .settings import Settings


@dataclass(frozen=True)
class Listener:
    """Who is told how a group gets on: before each round, and whose turn it is for what."""

    on_progress: Callable[[Progress], None] | None = None
    on_turn: OnTurn = nobody


NOBODY = Listener()
Lost = Mapping[str, Rejection]
"""Why contenders are not run again, by their names."""


@dataclass
class GroupResult:
    """The records of one group."""

    records: list[Record] = field(default_factory=list)


class Group(ABC):
    """One set of interleaved contenders. Subclasses say what is called, how it is checked and what it should cost."""

    title: str
    baseline: str
    cost: float
    """Rough relative time, for the progress bar."""
    fresh: bool = False
    """Whether it needs a process that was not forked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def cases(self) -> dict[str, Case]:
        """Contender name -> its case."""

    def foreign(self) -> frozenset[str]:
        """Names of the contenders that run the code of a plug-in."""
        plugged = registered()
        return frozenset(
            name
            for name, case in self.cases.items()
            if any(case.backend == own or case.backend.startswith(f"{own}-") for own in plugged)
        )

    @abstractmethod
    def contenders(self) -> list[Contender]:
        """Builds inputs and returns what is to be checked and timed."""

    @abstractmethod
    def flops(self, name: str) -> Flops:
        """Counts that need no run; `counted_flops` is filled in by `run`."""

    def counted(self, contender: Contender) -> Call:
        """What to count FLOPs of: the same work through operators that PyTorch's counter knows."""
        return contender.call

    def stages(self, contender: Contender, samples_s: Sequence[float]) -> dict[str, float] | None:
        """Seconds by stage, for contenders that have stages; `samples_s` are its timed samples."""
        return None

    def predicted_bytes(self, name: str) -> int | None:
        """What a call should add to the process at its peak, where that can be told from shapes."""
        return None

    def run(self, environment: str, listener: Listener = NOBODY, lost: Lost | None = None) -> GroupResult:
        """Check and time all contenders; after the timing, count FLOPs, memory and stages.

        Contenders in `lost` are not run; their records carry the reason given there.
        """
        device = torch.device(self.settings.device)
        with thread_count(self.settings.threads), _grad(self.settings.mode != "infer"):
            contenders = self.contenders()
            with holding_functions():  # one yardstick for what is timed and for what is counted afterwards
                result = measure(
                    contenders,
                    self.baseline,
                    self.settings.plan,
                    timer=timer_for(device),
                    disturbance=ForeignLoad(),
                    on_progress=listener.on_progress,
                    on_turn=listener.on_turn,
                    lost=lost,
                )
                sealed = pickle.dumps(result)  # what kernels still to be called find cannot be written to
                del result
                with frozen_heap():  # each look at memory begins with a collection
                    records = [
                        self._record(contender, environment, sealed, listener.on_turn)
                        for contender in contenders
                    ]
                return GroupResult(records)

    def besides(
        self, contender: Contender, samples_s: Sequence[float]
    ) -> tuple[int | None, Memory, dict[str, float] | None]:
        """Counted FLOPs, memory and seconds by stage; what these calls return must be as right as what was timed."""
        with unchanged("while its FLOPs were counted", first_call=True):
            counted = counted_flops(self.counted(contender)) or None  # 0: nothing it knows
        last: list[object] = []

        def call() -> object:
            last.clear()
            last.append(contender.call())
            return last[0]

        with unchanged("while its memory was measured", first_call=True):
            memory = _memory(
                call,
                torch.device(self.settings.device),
                self.predicted_bytes(contender.name),
                lambda: self._hold(contender, last),
            )
            stages = self.stages(replace(contender, call=call), samples_s)
            if stages is not None:
                self._hold(contender, last)
        return counted, memory, stages

    @staticmethod
    def _hold(contender: Contender, last: list[object]) -> None:
        """WrongResult if the last result is not what the inputs, which are those of the checks, must give."""
        if contender.work is None or not active("results judged"):
            return
        if told := failures(contender.work.judge(last[0], whole=False)):
            raise WrongResult(f"while its memory was measured: {told}")

    def _record(self, contender: Contender, environment: str, sealed: bytes, turn: OnTurn) -> Record:
        """The record of one contender; an exception after its timing costs that contender alone its result."""
        name, case = contender.name, self.cases[contender.name]
        flops, memory, stages = self.flops(name), Memory(), None
        timed = _opened(sealed).contenders[name]
        if timed.rejection is None:
            turn(name, "memory, FLOPs and stages")
            try:
                contender.prepare()
                counted, memory, stages = self.besides(contender, timed.samples_s)
            except Exception as error:
                found = rejection_of(error)
                reason = f"after its timing: {found.reason}"
                return Record.without_result(case, environment, Status(found.status), reason, flops=flops)
            flops = replace(flops, counted_flops=counted)
        return Record.of_rounds(
            case, environment, _opened(sealed), name, stages_s=stages, flops=flops, memory=memory
        )


def _opened(sealed: bytes) -> RoundsResult:
    result: RoundsResult = pickle.loads(sealed)
    return result


def run_or_explain(
    group: Group, environment: str, listener: Listener = NOBODY, lost: Lost | None = None
) -> list[Record]:
    """The group's records; if it cannot be set up, rows with the reason, so that the sweep goes on."""
    try:
        return group.run(environment, listener, lost).records
    except Exception as error:
        return explained(group, environment, rejection_of(error), lost)


def explained(group: Group, environment: str, rejection: Rejection, lost: Lost | None = None) -> list[Record]:
    """A record without a result for every case of the group; those in `lost` keep their own reason."""
    known = lost or {}
    return [
        Record.without_result(case, environment, Status(found.status), found.reason)
        for name, case in group.cases.items()
        for found in (known.get(name, rejection),)
    ]


def _memory(
    call: Callable[[], object],
    device: torch.device,
    predicted_bytes: int | None,
    hold: Callable[[], None],
) -> Memory:
    """`hold` is called after each call that was looked at."""
    allocated, held_bytes = peak_allocated(call, device), resident_bytes()
    hold()
    process = peak_process(call)
    hold()
    return Memory(
        peak_allocated_bytes=allocated.bytes,
        peak_allocated_source=allocated.source,
        peak_process_bytes=process.bytes,
        peak_process_source=process.source,
        predicted_peak_bytes=None if predicted_bytes is None else held_bytes + predicted_bytes,
    )


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let torch, and the kernels with it, use `count` threads inside this context."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def _grad(enabled: bool) -> Iterator[None]:
    with torch.set_grad_enabled(enabled):
        yield
