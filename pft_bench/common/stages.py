"""Named stages of the model, so that a measurement can say where the time goes.

Code marks what it does with ``with stage("ffn"):``. Nothing happens unless a recorder is active (`record`), so the
marks cost a function call in normal use. Times are exclusive: what an inner stage takes is not counted in the
outer one, so the stages of a run add up to its whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

STAGES = (
    "projection",
    "logits",
    "select",
    "av",
    "attention",
    "lepe",
    "ffn",
    "conv",
    "norm",
    "window",
    "other",
)
"""Known stages: `select` is softmax and top-k together, `window` is roll, partition and merge, `attention` is
logits, select and av of a backend that does not tell them apart."""

_NOTHING: AbstractContextManager[None] = nullcontext()


class StageTimes:
    """Exclusive seconds by stage, in the order in which stages were first seen."""

    def __init__(self, synchronize: Callable[[], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize
        self._open: list[tuple[str, float]] = []  # stage, seconds spent in stages inside it

    def add(self, name: str, seconds: float) -> None:
        """Count `seconds` towards the stage `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the enclosed code as `name`, less what stages inside it take."""
        start = self._now()
        self._open.append((name, 0.0))
        try:
            yield
        finally:
            elapsed = self._now() - start
            _, inner = self._open.pop()
            self.add(name, elapsed - inner)
            if self._open:
                outer, spent = self._open[-1]
                self._open[-1] = (outer, spent + elapsed)


_recorder: StageTimes | None = None
_annotate: Callable[[str], AbstractContextManager[None]] | None = None


_observe_part: Callable[[object], AbstractContextManager[None]] | None = None


def active() -> bool:
    """Whether a recorder is collecting stage times now."""
    return _recorder is not None


def stage(name: str) -> AbstractContextManager[None]:
    """Mark the enclosed code as the stage `name`."""
    if _recorder is not None:
        return _recorder.timed(name)
    if _annotate is not None:
        return _annotate(name)
    return _NOTHING


def part(module: object) -> AbstractContextManager[None]:
    """Mark the enclosed code as the work of `module`, a block or a layer of a model, whatever stages it consists of."""
    return _NOTHING if _observe_part is None else _observe_part(module)


def split(name: str, weights: Mapping[str, float]) -> None:
    """Divide the time counted so far for the stage `name` among others, in proportion to `weights`.

    For fused kernels, which report their phases themselves. Call it directly after the stage `name` has ended.
    """
    if _recorder is None or name not in _recorder.seconds:
        return
    seconds = _recorder.seconds.pop(name)
    total = sum(weights.values())
    for phase, weight in weights.items():
        _recorder.add(phase, seconds * weight / total if total > 0 else seconds / len(weights))


@contextmanager
def record(synchronize: Callable[[], None] | None = None) -> Iterator[StageTimes]:
    """Collect stage times inside this context; `synchronize` is called before each clock reading (GPU)."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("stages.record() is already active: stage times cannot be nested")
    _recorder = StageTimes(synchronize)
    try:
        with _recorder.timed("other"):
            yield _recorder
    finally:
        _recorder = None


@contextmanager
def _while_set(name: str, value: object) -> Iterator[None]:
    """Let a variable of this module have this value inside this context."""
    previous = globals()[name]
    globals()[name] = value
    try:
        yield
    finally:
        globals()[name] = previous


def annotate(make: Callable[[str], AbstractContextManager[None]]) -> AbstractContextManager[None]:
    """Open a profiler range `make(name)` around each stage inside this context (NVTX, torch.profiler)."""
    return _while_set("_annotate", make)


def observe_parts(make: Callable[[object], AbstractContextManager[None]]) -> AbstractContextManager[None]:
    """Enter `make(module)` around what each block and each layer of a model does inside this context."""
    return _while_set("_observe_part", make)
