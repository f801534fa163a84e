"""A group: candidates that do the same work, checked, then timed in interleaved rounds against one baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..measure.candidate import Call, Candidate
from ..measure.flops import counted_flops
from ..measure.memory import peak_allocated, peak_process
from ..measure.rounds import Progress, measure
from ..measure.timer import CpuTimer, cuda_timer
from ..record import Case, Flops, Memory, Record
from .settings import Settings

OnProgress = Callable[[Progress], None]


@dataclass
class GroupResult:
    """The records of one group."""

    records: list[Record] = field(default_factory=list)


class Group(ABC):
    """One set of interleaved candidates. Subclasses say what is called, how it is checked and what it should cost."""

    title: str
    baseline: str
    cost: float
    """Rough relative time, for the progress bar."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def cases(self) -> dict[str, Case]:
        """Candidate name -> its case."""

    @abstractmethod
    def candidates(self) -> list[Candidate]:
        """Builds inputs and returns what is to be checked and timed."""

    @abstractmethod
    def flops(self, name: str) -> Flops:
        """Counts that need no run; `counted_flops` is filled in by `run`."""

    def counted(self, candidate: Candidate) -> Call:
        """What to count FLOPs of: the same work through operators that PyTorch's counter knows."""
        return candidate.call

    def stages(self, candidate: Candidate, samples_s: Sequence[float]) -> dict[str, float] | None:
        """Seconds by stage, for candidates that have stages; `samples_s` are its timed samples."""
        return None

    def run(self, environment: str, on_progress: OnProgress | None = None) -> GroupResult:
        """Check and time all candidates; afterwards, apart from the timing, count FLOPs, memory and stages."""
        device = torch.device(self.settings.device)
        with thread_count(self.settings.threads), _grad(self.settings.mode == "train"):
            candidates = self.candidates()
            result = measure(
                candidates,
                self.baseline,
                self.settings.plan,
                timer=CpuTimer() if device.type == "cpu" else lambda subjects: cuda_timer(subjects, device),
                on_progress=on_progress,
            )
            records = []
            for candidate in candidates:
                passed = result.candidates[candidate.name].rejection is None
                flops = self.flops(candidate.name)
                memory, stages = Memory(), None
                if passed:
                    flops = Flops(
                        paper_macs=flops.paper_macs,
                        counted_flops=counted_flops(self.counted(candidate)) or None,  # 0: nothing it knows
                        kernel_flops=flops.kernel_flops,
                        kernel_bytes=flops.kernel_bytes,
                    )
                    memory = _memory(candidate.call, device)
                    stages = self.stages(candidate, result.candidates[candidate.name].samples_s)
                records.append(
                    Record.of_rounds(
                        self.cases[candidate.name],
                        environment,
                        result,
                        candidate.name,
                        stages_s=stages,
                        flops=flops,
                        memory=memory,
                    )
                )
        return GroupResult(records)


def _memory(call: Callable[[], object], device: torch.device) -> Memory:
    allocated, process = peak_allocated(call, device), peak_process(call)
    return Memory(
        peak_allocated_bytes=allocated.bytes,
        peak_allocated_source=allocated.source,
        peak_process_bytes=process.bytes,
        peak_process_source=process.source,
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
