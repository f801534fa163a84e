"""Items that go wrong, for workers: a step must lose nothing but them."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pft_bench.maintain.gpu import running
from pft_bench.maintain.gpu.running import Item, ItemResult, Session


def right() -> ItemResult:
    return ItemResult((), {"checks": 3})


def wrong() -> ItemResult:
    return ItemResult(("the values are off", "so are the gradients"))


def raises() -> ItemResult:
    raise RuntimeError("no such | kernel")


def segfaults() -> ItemResult:
    ctypes.string_at(0)
    return ItemResult()


def hangs() -> ItemResult:
    time.sleep(1000)
    return ItemResult()


def lasts(seconds: float) -> ItemResult:
    time.sleep(seconds)
    return ItemResult()


def process() -> ItemResult:
    return ItemResult((), {"pid": os.getpid()})


def one_of_each(session: Session) -> Iterator[Item]:
    for call in (right, wrong, raises, segfaults, process):
        yield Item(call.__name__, call)


def one_that_hangs(session: Session) -> Iterator[Item]:
    for name, call in (("before", right), ("hangs", hangs), ("after", right), ("last", right)):
        yield Item(name, call)


def more_than_fits(session: Session) -> Iterator[Item]:
    for number in range(50):
        yield Item(f"number {number}", partial(lasts, 0.2))


@dataclass(frozen=True)
class OnGpu(Session):
    """Says that it runs on a GPU, whose state is asked after each error."""

    @property
    def device(self) -> str:
        return "cuda"


def _unusable_after(times: int) -> None:
    """From now on this process is told that CUDA is unusable."""
    running._usable = lambda: False  # type: ignore[assignment]


def poisons() -> ItemResult:
    _unusable_after(0)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def one_that_poisons(session: Session) -> Iterator[Item]:
    for name, call in (("before", process), ("poisons", poisons), ("after", process)):
        yield Item(name, call)


def gone() -> ItemResult:
    _unusable_after(0)
    raise RuntimeError("CUDA error: the device was lost")


def a_device_that_goes(session: Session) -> Iterator[Item]:
    yield Item("before", right)
    for number in range(20):
        yield Item(f"number {number}", gone)
