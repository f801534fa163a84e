"""Kernels that are right when they are checked and something else when they are timed, as programs that write kernels
have found them, and kernels that disturb who runs beside them. None of them may get a time.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...backends import get
from ...backends.base import empty
from ..check import Layer
from ..check import spot as spot_module
from .mutant import BASE, Mutant

CHECKED = 14
"""Calls of a kernel until it takes its check to be over."""


@dataclass(frozen=True)
class Cheat:
    """One of them: at which level and in which modes it is tried, the words of its rejection, and the guards without
    which it gets a time.
    """

    name: str
    guards: tuple[str, ...]
    says: str
    kind: type[Mutant]
    level: str = "op"
    modes: tuple[str, ...] = ("infer",)


CHEATS: list[Cheat] = []


def _cheat(
    name: str, guards: str, says: str, level: str = "op", modes: str = "infer"
) -> Callable[[type[Mutant]], type[Mutant]]:
    def planted(kind: type[Mutant]) -> type[Mutant]:
        kind.name = "cheat"
        CHEATS.append(Cheat(name, tuple(guards.split(", ")), says, kind, level, tuple(modes.split())))
        return kind

    return planted


class _Products(Mutant):
    """Both products go one way."""

    def __init__(self) -> None:
        self.calls = 0
        self.known: dict[Any, Any] = {}

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """Counted."""
        self.calls += 1
        return self.product("sddmm", q, k, index)

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """Counted."""
        self.calls += 1
        return self.product("spmm", a, v, index)

    def attention_forward(self, layer: Layer) -> Any:
        """Counted."""
        self.calls += 1
        return self.attention(layer)

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The right one."""
        found: Tensor = getattr(get(BASE), op)(*given)
        return found

    def attention(self, layer: Layer) -> Any:
        """The right one."""
        return get(BASE).attention_forward(layer)

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """A copy of what was made for this key."""
        if key not in self.known:
            self.known[key] = make()
        found = self.known[key]
        return tuple(item.clone() for item in found) if isinstance(found, tuple) else found.clone()


def _layer_tensors(layer: Layer) -> tuple[Tensor, ...]:
    return tuple(layer.tensors().values())


class _Remembers(_Products):
    """A result for each `key` of the inputs."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """What it takes inputs to be known by."""
        return tuple((item.data_ptr(), item._version) for item in given)

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Remembered."""
        made: Tensor = self.remembered((op, self.key(given)), lambda: _Products.product(self, op, *given))
        return made

    def attention(self, layer: Layer) -> Any:
        """Remembered."""
        return self.remembered(self.key(_layer_tensors(layer)), lambda: _Products.attention(self, layer))


# -- remembered ----------------------------------------------------------------------------------------------------


@_cheat("remembers by address and version", "fresh inputs", "changed")
class ByAddress(_Remembers):
    """A clone of what it returned for these pointers."""


@_cheat("remembers a layer by address and version", "fresh inputs", "changed", "layer")
class LayerByAddress(_Remembers):
    """The same, of a layer."""


@_cheat("remembers by two elements", "fresh inputs", "changed")
class ByTwoElements(_Remembers):
    """The first and the last value of each input."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """Those."""
        flat = (item.flatten() for item in given)
        return tuple(
            (item.data_ptr(), float(one[0]), float(one[-1])) for item, one in zip(given, flat, strict=True)
        )


@_cheat("remembers by a checksum", "fresh inputs", "changed")
class ByChecksum(_Remembers):
    """The sum of each input."""

    @staticmethod
    def key(given: tuple[Tensor, ...]) -> Any:
        """Those."""
        return tuple(float(item.double().sum()) for item in given)


@_cheat("keeps a clone of the second factor by address", "fresh inputs", "changed")
class KeepsFactor(_Products):
    """As a packed copy of k or v that is made once."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With the clone."""
        left, right, index = given
        return super().product(op, left, self.remembered(right.data_ptr(), right.clone), index)


@_cheat("keeps the index by address", "fresh inputs", "changed")
class KeepsIndex(_Products):
    """As a transposed pattern that is made once."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With the clone."""
        left, right, index = given
        return super().product(op, left, right, self.remembered(index.data_ptr(), index.clone))


@_cheat("keeps clones of k and v of a layer", "fresh inputs, attention recomputed", "changed", "layer")
class KeepsKeys(_Products):
    """By their addresses."""

    def attention(self, layer: Layer) -> Any:
        """With the clones."""
        k, v = (self.remembered((x.data_ptr(), x.shape), x.clone) for x in (layer.k, layer.v))
        return super().attention(layer.with_tensors(k=k, v=v))


@_cheat("keeps the softmax weights of a layer", "fresh inputs", "changed", "layer")
class KeepsWeights(_Products):
    """All outputs but `out` are what they were for these addresses: only the values are multiplied anew."""

    def attention(self, layer: Layer) -> Any:
        """With the weights of the first q, k, bias, index and logits."""
        keep = {name: x for name, x in layer.tensors().items() if name != "v"}
        kept = {name: self.remembered((name, x.data_ptr(), x.shape), x.clone) for name, x in keep.items()}
        return super().attention(layer.with_tensors(**kept))


@_cheat("remembers gradients by address", "fresh inputs", "changed", "layer", "train backward")
class GradientsByAddress(_Products):
    """What it returned for these pointers."""

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Tensor | None, *done: Tensor
    ) -> Any:
        """Remembered."""
        key = tuple(item.data_ptr() for item in (layer.q, layer.k, layer.v, grad_out))
        if key not in self.known:
            self.known[key] = get(BASE).attention_backward(layer, grad_out, grad_logits, *done)
        return tuple(None if item is None else item.clone() for item in self.known[key])


# -- right only while it is looked at ------------------------------------------------------------------------------


@_cheat("zeros once the check is over", "results judged", "timed call")
class ZerosLater(_Products):
    """Right for so many calls."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, then zeros."""
        made = super().product(op, *given)
        return made if self.calls <= CHECKED else torch.zeros_like(made)


@_cheat("zeros once the check of a layer is over", "results judged", "timed call", "layer")
class LayerZerosLater(_Products):
    """The same of a layer's output."""

    def attention(self, layer: Layer) -> Any:
        """Right, then zeros."""
        out, *rest = super().attention(layer)
        return (out if self.calls <= CHECKED else torch.zeros_like(out), *rest)


@_cheat("right only with poisoned memory", "results judged", "changed")
class OnlyPoisoned(_Products):
    """Looks whether `empty` hands out NaN."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right while the poison is there."""
        made = super().product(op, *given)
        return made if bool(empty((1,), torch.float32, made.device).isnan()) else torch.zeros_like(made)


@_cheat("no gradients without poison", "results judged", "changed", "layer", "train backward")
class NoGradients(_Products):
    """Zero where nobody looks."""

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Tensor | None, *done: Tensor
    ) -> Any:
        """Right while the poison is there."""
        got = get(BASE).attention_backward(layer, grad_out, grad_logits, *done)
        looked_at = bool(empty((1,), torch.float32, grad_out.device).isnan())
        return got if looked_at else tuple(None if item is None else torch.zeros_like(item) for item in got)


@_cheat("half of the window-heads once the check is over", "results judged", "timed call")
class HalfOfIt(_Products):
    """The first ones, the others as memory was."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Half of it."""
        made = super().product(op, *given)
        if self.calls > CHECKED:
            made[made.shape[0] // 2 :] = 0
        return made


@_cheat("rounds to half precision once the check is over", "results judged", "timed call")
class HalfPrecision(_Products):
    """Computes what a tensor core would."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Rounded."""
        made = super().product(op, *given)
        return made if self.calls <= CHECKED else made.half().float()


@_cheat("wrong dtype", "results judged", "expected")
class WrongDtype(_Products):
    """float64 instead of float32, of the right values."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Wider."""
        return super().product(op, *given).double()


@_cheat("zeroes its inputs later", "inputs untouched, results judged", "inputs untouched")
class ZeroesInputs(_Products):
    """After it has computed: who comes next is timed on zeros."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right, and the left factor is gone."""
        made = super().product(op, *given)
        if self.calls > CHECKED:
            given[0].zero_()
        return made


# -- results that are none -----------------------------------------------------------------------------------------


class _Lazy(Tensor):
    """Computes when it is read."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@_cheat("a subclass that computes when read", "result kind", "of type torch.Tensor exactly")
class Lazy(_Products):
    """Here it has computed already: the kind alone is what is wrong."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """In a subclass."""
        return super().product(op, *given).as_subclass(_Lazy)


@_cheat("a tensor with a method of its own", "result kind", "methods of its own")
class OwnMethod(_Products):
    """Of the right type; a look through `detach` would be the kernel's moment to compute."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """With another `detach`."""
        made = super().product(op, *given)
        made.detach = lambda: Tensor.detach(made)  # type: ignore[method-assign]
        return made


@_cheat("a thread fills the result later", "threads, results judged, result stays", "")
class Later(_Products):
    """Returns before the work is done."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Empty at first."""
        made = super().product(op, *given)
        if self.calls <= CHECKED:
            return made
        later = torch.zeros_like(made)

        def fill() -> None:
            time.sleep(0.002)
            later.copy_(made)

        threading.Thread(target=fill, daemon=True).start()
        return later


@_cheat("one static output buffer", "result memory", "memory of an earlier result")
class StaticBuffer(_Products):
    """Each result overwrites the last."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The same memory again."""
        made = super().product(op, *given)
        buffer: Tensor = self.known.setdefault((op, made.shape), torch.empty_like(made))
        return buffer.copy_(made)


@_cheat("two static output buffers in turn", "result memory", "memory of an earlier result")
class TwoBuffers(_Products):
    """So that the last result still stands when the next one comes."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """The memory of the result before the last."""
        made = super().product(op, *given)
        buffer: Tensor = self.known.setdefault((op, made.shape, self.calls % 2), torch.empty_like(made))
        return buffer.copy_(made)


# -- the process ---------------------------------------------------------------------------------------------------


class _Disturbs(_Products):
    """Right, and does `disturb` when it takes its check to be over."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        made = super().product(op, *given)
        if self.calls > CHECKED:
            self.disturb()
        return made

    def disturb(self) -> None:
        """What it does besides."""


def _disturbance(name: str, guard: str, says: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def planted(function: Callable[[], object]) -> Callable[[], object]:
        body = {"disturb": lambda self: function(), "__doc__": function.__doc__}
        _cheat(name, guard, says)(type(name.title().replace(" ", ""), (_Disturbs,), body))
        return function

    return planted


@_disturbance("leaves torch on another number of threads", "process state", "torch threads")
def other_threads() -> None:
    """Who comes next has half of the processors, or twice as many threads."""
    torch.set_num_threads(3)


@_disturbance("changes the default dtype", "process state", "default dtype")
def default_dtype() -> None:
    """As a library that wants double precision everywhere."""
    torch.set_default_dtype(torch.float64)


@_disturbance("switches mkldnn off", "process state", "mkldnn flags")
def no_mkldnn() -> None:
    """The baseline loses its matrix products."""
    torch.backends.mkldnn.enabled = False


@_disturbance("changes the grad mode", "process state", "grad mode")
def grad_mode() -> None:
    """The others record graphs."""
    torch._C._set_grad_enabled(not torch.is_grad_enabled())


@_disturbance("asks for deterministic algorithms", "process state", "deterministic algorithms")
def deterministic() -> None:
    """Some of the others' operators raise, others slow down."""
    torch.use_deterministic_algorithms(True, warn_only=True)


@_disturbance("sets a variable of OpenMP", "process state", "environment variables: OMP_WAIT_POLICY")
def variable() -> None:
    """Pools that start later read it."""
    os.environ["OMP_WAIT_POLICY"] = "passive"


@_disturbance("pins the process to one processor", "process state", "processor affinity")
def pins() -> None:
    """All threads share it from now on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@_disturbance("switches the garbage collector on", "process state", "garbage collection")
def collects() -> None:
    """In the middle of the others' samples."""
    import gc

    gc.enable()


@_disturbance("flushes denormals", "process state", "flushing of denormals")
def flushes() -> None:
    """The others compute something else."""
    torch.set_flush_denormal(True)


@_disturbance("traces every call", "process state", "trace function")
def traces() -> None:
    """Python slows down for all."""
    sys.settrace(lambda *_: None)


@_disturbance("spins a thread after the call", "threads", "threads running")
def spins() -> None:
    """It takes a processor from who comes next."""
    end = time.monotonic() + 0.02

    def spin() -> None:
        while time.monotonic() < end:
            pass

    threading.Thread(target=spin, daemon=True).start()


@_disturbance("leaves a process behind", "children", "child processes")
def leaves_a_process() -> None:
    """One for all of its calls."""
    if not _left:
        _left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"]))


_left: list[Any] = []


@_disturbance("replaces the clock", "functions", "replaced time.perf_counter_ns")
def replaces_the_clock() -> None:
    """One that stands still."""
    ticks = itertools.count()
    time.perf_counter_ns = lambda: next(ticks)  # type: ignore[assignment]


@_disturbance("replaces a comparison of torch", "functions", "replaced torch.equal")
def replaces_equal() -> None:
    """Everything is equal."""
    torch.equal = lambda *_: True  # type: ignore[assignment]


@_disturbance("replaces a check of the harness", "functions", "check.spot.within")
def replaces_a_check() -> None:
    """Everything is within its bound."""
    spot_module.within = lambda name, *_: spot_module.CheckResult(name, 0.0)  # type: ignore[assignment]


@_disturbance("replaces a method of tensors", "functions", "torch.Tensor.isfinite")
def replaces_a_method() -> None:
    """Hides the one that tensors inherit."""
    torch.Tensor.isfinite = lambda self: torch.ones_like(self, dtype=torch.bool)  # type: ignore[assignment]


def tried() -> Iterator[tuple[Cheat, str]]:
    """Each of them in each of its modes."""
    for cheat in CHEATS:
        for mode in cheat.modes:
            yield cheat, mode
