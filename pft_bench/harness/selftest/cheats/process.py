"""Kernels that are right and disturb the process in which others run beside them."""

from __future__ import annotations

import _thread
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ....backends import base, get
from ...check import Layer
from ...check import spot as spot_module
from ...check.result import CheckResult
from ...measure import process_state
from .base import Products, RightUntilTimed, callers, cheat


class Disturbs(RightUntilTimed):
    """Right, and does `disturb` when it takes its check to be over, at any level and in both directions."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        self.disturb()
        return made

    def attention(self, layer: Layer) -> Any:
        """Right."""
        made = super().attention(layer)
        if self.is_timed():
            self.disturb()
        return made

    def gradients(self, layer: Layer, *given: Any) -> Any:
        """Right."""
        made = super().gradients(layer, *given)
        if self.is_timed():
            self.disturb()
        return made

    def disturb(self) -> None:
        """What it does besides."""


def disturbance(
    name: str, guard: str, says: str, *elsewhere: str, processors: int = 1
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Plant a kernel that does what the decorated function does, besides its work: at level op, and `elsewhere`, each
    a level and its modes.
    """

    def planted(function: Callable[[], object]) -> Callable[[], object]:
        body = {"disturb": lambda self: function(), "__doc__": function.__doc__}
        kind = type(name.title().replace(" ", ""), (Disturbs,), body)
        cheat(name, guard, says, processors=processors)(kind)
        for place in elsewhere:
            level, _, modes = place.partition(" ")
            cheat(f"{name}, level {level}", guard, says, level, modes, processors=processors)(kind)
        return function

    return planted


def _replace(owner: Any, name: str, value: object) -> None:
    """By the name that everybody looks up."""
    setattr(owner, name, value)


@disturbance(
    "leaves torch on another number of threads",
    "process state",
    "torch threads",
    "layer backward",
    "model train",
)
def other_threads() -> None:
    """Who comes next has half of the processors, or twice as many threads."""
    torch.set_num_threads(3)


@disturbance("changes the default dtype", "process state", "default dtype", "model infer")
def default_dtype() -> None:
    """As a library that wants double precision everywhere."""
    torch.set_default_dtype(torch.float64)


@disturbance("switches mkldnn off", "process state", "mkldnn flags", "layer infer")
def no_mkldnn() -> None:
    """The baseline loses its matrix products."""
    _replace(torch.backends.mkldnn, "enabled", False)


@disturbance("changes the grad mode", "process state", "grad mode", "layer infer")
def grad_mode() -> None:
    """The others record graphs."""
    torch._C._set_grad_enabled(True)


@disturbance(
    "asks for deterministic algorithms", "process state", "deterministic algorithms", "layer backward"
)
def deterministic() -> None:
    """Some of the others' operators raise, others slow down."""
    torch.use_deterministic_algorithms(True, warn_only=True)


@disturbance(
    "sets a variable of OpenMP", "process state", "environment variables: OMP_SCHEDULE", "layer train"
)
def variable() -> None:
    """Pools that start later read it."""
    os.environ["OMP_SCHEDULE"] = "static"


@disturbance("pins the process to one processor", "process state", "processor affinity", processors=2)
def pins() -> None:
    """All threads share it from now on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@disturbance("switches the garbage collector on", "process state", "garbage collection")
def collects() -> None:
    """In the middle of the others' samples."""
    import gc

    gc.enable()


@disturbance("flushes denormals", "process state", "flushing of denormals")
def flushes() -> None:
    """The others compute something else."""
    torch.set_flush_denormal(True)


@disturbance("traces every call", "process state", "trace or profile function")
def traces() -> None:
    """Python slows down for all."""
    sys.settrace(lambda *_: None)


@disturbance("spins a thread after the call", "threads", "threads running", "layer train")
def spins() -> None:
    """It takes a processor from who comes next."""
    end = time.monotonic() + 0.05

    def spin() -> None:
        while time.monotonic() < end:
            time.sleep(0)  # a step of training waits for no lock, and ends before the thread does

    threading.Thread(target=spin, daemon=True).start()


@disturbance("leaves a process behind", "children", "child processes", "layer backward")
def leaves_a_process() -> None:
    """One for all of its calls."""
    if sum(one.poll() is None for one in _left) < 2:
        _left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"]))


_left: list[Any] = []


@disturbance("replaces the clock", "functions", "replaced time.perf_counter_ns")
def replaces_the_clock() -> None:
    """One that stands still."""
    ticks = itertools.count()
    _replace(time, "perf_counter_ns", lambda: next(ticks))


@disturbance("replaces a comparison of torch", "functions", "replaced torch.equal")
def replaces_equal() -> None:
    """Everything is equal."""
    _replace(torch, "equal", lambda *_: True)


@disturbance("replaces a check of the harness", "functions", "check.spot.within")
def replaces_a_check() -> None:
    """Everything is within its bound."""
    _replace(spot_module, "within", lambda name, *_: CheckResult(name, 0.0))


@disturbance("replaces a method of tensors", "functions", "torch.Tensor.isfinite")
def replaces_a_method() -> None:
    """Hides the one that tensors inherit."""
    _replace(torch.Tensor, "isfinite", lambda self: torch.ones_like(self, dtype=torch.bool))


@disturbance("starts a thread that Python's list of threads lacks", "threads", "threads running")
def hidden_thread() -> None:
    """Below the module `threading`."""
    _thread.start_new_thread(time.sleep, (0.05,))


@disturbance("forks twice and leaves the second process", "children", "child processes")
def orphan() -> None:
    """Its parent has ended: it is nobody's child."""
    if not _orphaned:
        code = "import os, time; os.fork() and os._exit(0); time.sleep(2)"
        _orphaned.append(subprocess.run([sys.executable, "-S", "-c", code], check=False))


_orphaned: list[Any] = []


@disturbance("enters a mode of torch for good", "process state", "modes of torch")
def enters_a_mode() -> None:
    """Every call of torch goes through it, the judge's too."""

    class Mode(TorchFunctionMode):
        """Does nothing yet."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    Mode().__enter__()


@disturbance("asks for less exact float32 products", "process state", "matmul precision")
def less_exact() -> None:
    """Torch raises where its older and its newer settings contradict each other: nobody else would have a time."""
    torch.set_float32_matmul_precision("medium")


@disturbance("changes the default device", "process state", "default device", "layer train")
def default_device() -> None:
    """A mode of torch, which torch itself cannot take away once others have been entered around it."""
    torch.set_default_device("cpu:0")


@cheat("disturbs while its FLOPs are counted", "process state", "while its FLOPs were counted", besides=True)
class DisturbsCounting(Products):
    """A mode of torch is entered then, and the time is measured already."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        if any(frame.f_code.co_name == "counted_flops" for frame in callers()):
            torch.set_default_dtype(torch.float64)
        return super().product(op, *given)


@cheat("has Python call it between its calls", "process state", "between the calls of a timed sample")
class BetweenCalls(RightUntilTimed):
    """A profile function runs after the inputs have changed and before the clock starts: the kernel's moment to compute
    what it then returns at once. It is gone by the end of the sample.
    """

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right; and ahead of the next call."""
        if self.more_to_come():
            sys.setprofile(lambda *_: None)
        else:
            sys.setprofile(None)
        return made

    @staticmethod
    def more_to_come() -> bool:
        """Whether the sample has more calls, as one who looks for it among the callers finds it."""
        subject = next(
            (frame.f_locals["subject"] for frame in callers() if "subject" in frame.f_locals), None
        )
        return subject is not None and subject._calls - subject._done > 1


@disturbance("sets an alarm", "process state", "alarms")
def sets_an_alarm() -> None:
    """In the middle of somebody else's sample."""
    signal.setitimer(signal.ITIMER_REAL, 60.0)


@disturbance("installs a signal handler", "process state", "signal handlers")
def installs_a_handler() -> None:
    """Somebody else's call runs it."""
    signal.signal(signal.SIGUSR2, lambda *_: None)


@disturbance("calls back on each collection of garbage", "process state", "garbage collection")
def collects_later() -> None:
    """Between the samples."""
    import gc

    gc.callbacks.append(lambda *_: None)


@disturbance("replaces a built-in function", "functions", "replaced builtins.any")
def replaces_a_builtin() -> None:
    """Nothing is wrong any more."""
    import builtins

    _replace(builtins, "any", lambda _: False)


@disturbance("replaces where the harness draws from", "functions", "entropy.urandom")
def replaces_the_draw() -> None:
    """Every draw is known from now on."""
    from ....common import entropy

    _replace(entropy, "urandom", lambda size: bytes(size))


@disturbance("switches the harness's guards off", "process state", "switches of the harness")
def switches_off() -> None:
    """By the harness's own means."""
    from ...check import result
    from ...measure import guards

    guards._off.set(frozenset(guards.GUARDS))
    result.DISABLED.set(("",))


@disturbance("changes a constant of the harness", "functions", "verified.JUDGED")
def judges_less() -> None:
    """No sample is judged any more."""
    from ...measure import verified

    verified.JUDGED = 0.0


@disturbance("gives a check of the harness other code", "functions", "the code of")
def replaces_code() -> None:
    """The function is the same, what it runs is not."""
    spot_module._rows.__code__ = (lambda count, most=1: torch.zeros(1, dtype=torch.int64)).__code__


@disturbance("has the baseline call something else", "functions", "DenseBackend.sddmm")
def replaces_the_baseline() -> None:
    """What everybody is compared with, then waits."""
    kind = type(get("dense"))
    right = kind.sddmm

    def slower(*given: Any) -> Tensor:
        time.sleep(0.001)
        return right(*given)

    _replace(kind, "sddmm", slower)


@disturbance("gives the baseline a method of its own", "functions", "backend dense.sddmm")
def hides_the_baseline() -> None:
    """The class is what it was."""
    right = type(get("dense")).sddmm
    _replace(get("dense"), "sddmm", lambda *given: right(get("dense"), *given))


@disturbance("puts another backend in the baseline's place", "functions", "the backend dense")
def swaps_the_baseline() -> None:
    """Whoever asks for it gets a copy."""
    base._loaded["dense"] = type(get("dense"))()


@disturbance("hides a built-in function from a check", "functions", "check.spot.any")
def hides_a_builtin() -> None:
    """The built-in one is what it was."""
    _replace(spot_module, "any", lambda _: False)


@disturbance("replaces a module that a check calls", "functions", "check.spot.oracle")
def replaces_a_module() -> None:
    """The module itself is what it was."""
    _replace(spot_module, "oracle", type(sys)("oracle"))


@disturbance("replaces what a decorated function of the harness runs", "functions", "the code of")
def replaces_what_is_wrapped() -> None:
    """In the closure that the decorator made."""
    wrapper = process_state.unchanged
    for cell in wrapper.__closure__ or ():
        cell.cell_contents = lambda *_, **__: iter([None])


@disturbance("hooks the calls of all modules of torch", "process state", "hooks on all modules")
def hooks_modules() -> None:
    """Every layer of every model."""
    torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None)


@disturbance("leaves inference mode on", "process state", "inference mode")
def inference_mode() -> None:
    """Nobody can compute gradients any more."""
    _modes.append(torch._C._InferenceMode(True))


_modes: list[Any] = []


@disturbance("changes how the harness reads a flag", "functions", "process_state.snapshot.FLAGS")
def changes_flags() -> None:
    """What is not read is not compared."""
    _replace(process_state.snapshot, "FLAGS", ())


@disturbance("forks, and returns in the child too", "children", "child processes", "layer infer")
def forks() -> None:
    """The child would continue the run beside its parent."""
    os.fork()


@disturbance("lowers a limit of the process", "process state", "limits of the process: RLIMIT_CORE")
def lowers_a_limit() -> None:
    """Later contenders may have less."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    soft = 4096 if hard in (resource.RLIM_INFINITY, 0) or hard > 4096 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (min(soft, hard) if hard >= 0 else soft, hard))


@disturbance(
    "puts another object in the place of standard output", "process state", "standard output or error"
)
def replaces_output() -> None:
    """Later contenders print to it, and wait for its `flush`."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it is put back


@disturbance("writes results as it likes", "functions", "replaced json.dumps")
def replaces_json() -> None:
    """Every record becomes an empty object."""
    _replace(json, "dumps", lambda *_, **__: "{}")


@disturbance("writes nothing to files", "functions", "replaced os.write")
def replaces_write() -> None:
    """It returns the count of bytes as if they were written."""
    _replace(os, "write", lambda _, data: len(data))


@disturbance("changes a backend that is loaded late", "functions", "the backend cuda-emu")
def changes_a_late_backend() -> None:
    """It is loaded here for the first time, so the harness has not seen its functions."""
    base._loaded.pop("cuda-emu", None)
    _replace(get("cuda-emu"), "sddmm", lambda *_: None)


@disturbance("registers another class under a name of this project's", "functions", "the backend reference")
def registers_another_class() -> None:
    """The next contender that asks for the reference gets the other class."""
    base._BACKENDS["reference"] = ("dense", "DenseBackend")
