"""Level threads: the same work on 1, 2, 4, ... and all threads, against one thread in the same rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ...backends import get, poisoned
from ...common.schedule import FocusSchedule
from ...ops import observe_layers
from ...reference import Layer
from ..check.model import relative_error
from ..check.result import CheckResult
from ..measure.contender import Call, Contender
from ..measure.results import CheckOutcome
from ..record import Case, threads_text
from .group import Group, thread_count
from .joined import JoinedGroup
from .layer import LayerGroup
from .model import ModelGroup
from .settings import BASELINE, Settings

EVERY_COUNT_UP_TO = 8
GRAIN = 1 << 15
"""Elements below which torch gives an elementwise operator to one thread (`at::internal::GRAIN_SIZE`)."""

Workload = LayerGroup | ModelGroup


def thread_counts(most: int) -> list[int]:
    """1 to `most`: each of them where they are few, else the powers of two and `most`."""
    if most <= EVERY_COUNT_UP_TO:
        return list(range(1, most + 1))
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted({*powers, most})


def use_threads(count: int) -> None:
    """Have torch and the kernels use `count` threads.

    A first parallel region starts those that are missing and wakes the others, which the next call would pay for.
    """
    torch.set_num_threads(count)
    torch.empty(count * GRAIN).fill_(0.0)


class ThreadsGroup(JoinedGroup):
    """One workload on one backend, a contender for each number of threads; `make` gives it for its settings.

    The usual check is made once, on one thread. It holds on n threads if the result has the same bits; kernels that
    promise them (`Backend.same_bits`) fail without. A whole model may have other bits all the same: PyTorch's matrix
    products give a few output channels others on some numbers of threads. Then its attention is still held to the bits,
    layer by layer on the activations of the run, and the whole to the usual check again, on n threads.
    """

    def __init__(self, settings: Settings, backend: str, make: Callable[[Settings], Workload]) -> None:
        self.backend = backend
        self.counts = {threads_text(count): count for count in thread_counts(settings.threads)}
        alone = replace(settings, backends=(backend,))
        self.works = {name: make(replace(alone, threads=count)) for name, count in self.counts.items()}
        super().__init__(settings, {name: (work, backend) for name, work in self.works.items()})
        work = self.works[self.baseline]
        self.title = f"threads, {work.title} on {backend}"
        self.cost = work.cost * len(self.counts) / 2

    @property
    def cases(self) -> dict[str, Case]:
        """Number of threads in words -> its case."""
        return {name: replace(case, level="threads") for name, case in super().cases.items()}

    def contenders(self) -> list[Contender]:
        """One callable, which torch's number of threads makes that of each contender."""
        (made,) = self.works[self.baseline].contenders()
        alone = _OneThread(made)
        return [
            Contender(
                name,
                made.call,
                partial(self._check, alone, count),
                prepare=partial(use_threads, count),
                work=made.work,
            )
            for name, count in self.counts.items()
        ]

    def _check(self, alone: _OneThread, count: int, call: Call) -> Sequence[CheckOutcome]:
        """What holds of the result on `count` threads, which are set."""
        results = alone.checks
        if count == 1:
            return results
        promised, model = get(self.backend).same_bits, isinstance(self.works[self.baseline], ModelGroup)
        with poisoned():
            found = tensors(call())
        difference = unlike(found, alone.output)
        results = [*results, _against_one_thread(difference, required=promised and not model)]
        if promised and model:
            results.append(kernels_as_on_one_thread(self.backend, call))
        # A training step returns its loss; that one is the same says little of the gradients.
        if difference or (model and self.settings.mode == "train"):
            results += [_renamed(result, count) for result in alone.contender.check(call)]
        return results


class _OneThread:
    """The workload on one thread: its checks and its result, each computed when first asked for."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender

    @cached_property
    def checks(self) -> list[CheckOutcome]:
        """The usual check."""
        with thread_count(1):
            return list(self.contender.check(self.contender.call))

    @cached_property
    def output(self) -> list[Tensor]:
        """All that the call returns."""
        with thread_count(1):
            return tensors(self.contender.call())


def tensors(result: object) -> list[Tensor]:
    """Those that a call returned, one or several."""
    several = result if isinstance(result, tuple | list) else (result,)
    return [item.detach() for item in several if isinstance(item, Tensor)]


def unlike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Where two results differ in a bit and by how much; empty if they do not."""
    if len(found) != len(expected):
        return f"{len(found)} results instead of {len(expected)}"
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {number}: {list(a.shape)} {a.dtype} instead of {list(b.shape)} {b.dtype}"
        if not torch.equal(_bytes(a), _bytes(b)):
            return f"result {number}: relative difference {relative_error(a, b.double()):.2g}"
    return ""


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _against_one_thread(difference: str, *, required: bool) -> CheckResult:
    """`required` or told: where PyTorch computes, other bits are no error, and the usual check has the word."""
    wrong = bool(difference) and required
    return CheckResult("result as on 1 thread", float("inf") if wrong else 0.0, difference or "the same bits")


def kernels_as_on_one_thread(backend: str, call: Call) -> CheckResult:
    """Whether each layer of attention that `call` runs gives the bits that one thread gives for the same inputs."""
    forward = get(backend).attention_forward
    layers, differences = 0, []

    def compare(layer: Layer) -> None:
        nonlocal layers
        layers += 1
        with torch.no_grad(), poisoned():
            found = tensors(forward(layer))
            with thread_count(1):
                difference = unlike(found, tensors(forward(layer)))
        if difference:
            differences.append(f"layer {layers}, {difference}")

    with observe_layers(compare):
        call()
    told = "; ".join(differences[:3]) or f"{layers} layers, the same bits"
    return CheckResult("attention as on 1 thread", float("inf") if differences or not layers else 0.0, told)


def _renamed(result: CheckOutcome, count: int) -> CheckOutcome:
    """A check that was made again."""
    assert isinstance(result, CheckResult)
    return replace(result, name=f"{result.name}, {threads_text(count)}")


def _layer_alone(settings: Settings, step: tuple[int, int]) -> LayerGroup:
    """A layer without its compositions."""
    group = LayerGroup(settings, *step)
    group.peers = ()
    return group


def usual_steps(settings: Settings, schedule: FocusSchedule) -> list[tuple[int, int]]:
    """The dense and the sparse step (candidates, kept) that most layers of the schedule are."""
    area = settings.config.window_size**2
    steps = Counter(settings.config.along_chains(schedule.num_topk)).most_common()
    kinds = ([step for step, _ in steps if (step[0] == area) is dense] for dense in (True, False))
    return [kind[0] for kind in kinds if kind]


def thread_groups(settings: Settings) -> list[Group]:
    """A dense layer, a sparse layer and the model of each schedule; masked dense attention only where it is all."""
    schedules = {schedule.num_topk: schedule for schedule in settings.schedules}.values()
    steps = dict.fromkeys(step for schedule in schedules for step in usual_steps(settings, schedule))
    makes: list[Callable[[Settings], Workload]] = [partial(_layer_alone, step=step) for step in steps]
    makes += [partial(ModelGroup, schedule=schedule) for schedule in schedules]
    backends = [name for name in settings.backends if name != BASELINE] or [BASELINE]
    return [ThreadsGroup(settings, backend, make) for make in makes for backend in backends]
