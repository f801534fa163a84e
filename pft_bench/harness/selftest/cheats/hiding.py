"""Kernels that change what runs and leave every name that is looked at as it was, or hide the change from who looks."""

from __future__ import annotations

import copyreg
import pickle
import sys
import time
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ....backends import get
from ...check import oracle
from ...check import spot as spot_module
from ...measure.process_state import flags, functions
from ...measure.results import RoundsResult
from ...measure.verified import Verified
from .base import RightUntilTimed, callers, cheat
from .harness import _caller, _run, _work
from .process import _replace, disturbance


@disturbance("swaps the names of two functions", "functions", "replaced time.asctime, time.ctime")
def swaps_names() -> None:
    """The module has the same members in the same order."""
    scope = vars(time)
    if scope["ctime"].__name__ == "ctime":
        other = {"ctime": "asctime", "asctime": "ctime"}
        items = [(other.get(name, name), value) for name, value in scope.items()]
        scope.clear()
        scope.update(items)


@disturbance("hides a built-in function behind a class", "functions", "check.spot.any")
def hides_behind_a_class() -> None:
    """Classes are added to modules for good reasons, not under this name."""

    class NothingIsWrong:
        """Not an instance comes of it."""

        def __new__(cls, _: Any) -> Any:
            return False

    _replace(spot_module, "any", NothingIsWrong)


@disturbance("hides a method of tensors behind a property", "functions", "torch.Tensor.isfinite")
def hides_behind_a_property() -> None:
    """What is no function itself may give one."""
    _replace(torch.Tensor, "isfinite", property(lambda self: lambda: torch.ones_like(self, dtype=torch.bool)))


@disturbance("has layers of torch called by something else", "functions", "Linear.__call__", "model infer")
def hides_what_is_inherited() -> None:
    """Under a name that the class only inherits."""
    right = torch.nn.Module.__call__
    _replace(torch.nn.Linear, "__call__", lambda *given, **named: right(*given, **named))


class _Lying(ModuleType):
    """A module whose attributes could be anything."""


@disturbance("makes a module of the harness one of another type", "functions", "the type of pft_bench")
def changes_a_module() -> None:
    """Its members are what they were."""
    oracle.__class__ = _Lying


@disturbance("makes the baseline one of another class", "functions", "the type of backend dense")
def changes_the_baseline() -> None:
    """The object and what it holds are what they were."""
    kind = type(get("dense"))
    _replace(get("dense"), "__class__", type(kind.__name__, (kind,), {"__module__": kind.__module__}))


@disturbance("has the baseline inherit from another class", "functions", "DenseBackend inherits")
def changes_a_base() -> None:
    """The class has the members that it had."""
    kind = type(get("dense"))
    _replace(kind, "__bases__", (type("Between", kind.__bases__, {}),))


@disturbance("gives a static method of the harness other code", "functions", "the code of")
def replaces_static_code() -> None:
    """Nothing is required any more."""
    Verified._require.__code__ = (lambda holds, reason: None).__code__


@disturbance("gives a remembered function of the harness other code", "functions", "the code of")
def replaces_remembered_code() -> None:
    """What was remembered is still told."""
    flags._all_switches.__wrapped__.__code__ = (lambda: ()).__code__


@disturbance("hides a trace function", "functions, process state", "replaced sys.gettrace")
def hides_a_trace_function() -> None:
    """Python says that there is none."""
    _replace(sys, "gettrace", lambda: None)


@disturbance("writes results its own way", "functions", "replaced pickle.dumps")
def replaces_pickling() -> None:
    """What was measured is held in that form."""
    right = pickle.dumps
    _replace(pickle, "dumps", lambda *given: right(*given))


@disturbance("has results written its own way", "process state", "how objects are pickled")
def registers_a_reducer() -> None:
    """The function that writes is what it was."""
    copyreg.pickle(RoundsResult, lambda result: (RoundsResult, tuple(vars(result).values())))


@disturbance("puts another module in a module's place", "functions", "the module pft_bench.backends.base")
def replaces_an_import() -> None:
    """Who imports it later gets that one."""
    sys.modules["pft_bench.backends.base"] = ModuleType("pft_bench.backends.base")


@disturbance("registers an operator of torch anew", "process state", "aten/special_erfcx/CPU", "model infer")
def registers_an_operator() -> None:
    """For everybody, below Python's names: of one that nobody here uses, since torch sometimes keeps what it was told
    to forget.
    """
    if not any(key == "aten/special_erfcx/CPU" for key in torch.library._impls):
        made = torch.library.Library("aten", "IMPL")
        made.impl("special_erfcx", lambda given: given, "CPU")
        _libraries.append(made)


_libraries: list[Any] = []


@cheat("registers an operator with a library that it made long before", "process state", "special_entr/CPU")
class RegistersLater(RightUntilTimed):
    """`gc.get_objects` no longer lists the library, because the harness freezes all objects before a round."""

    def product(self, op: str, *given: Tensor) -> Tensor:
        """Right."""
        if not self.known:
            self.known[""] = torch.library.Library("aten", "IMPL")
        return super().product(op, *given)

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        if self.round() > 0 and len(self.known) == 1:
            self.known["done"] = self.known[""].impl("special_entr", lambda given: given, "CPU")
        return made


@disturbance(
    "hooks what others save for their gradients", "process state", "saved for gradients", "layer train"
)
def hooks_saving() -> None:
    """Every forward pass calls it."""
    torch._C._autograd._push_saved_tensors_default_hooks(lambda x: x, lambda x: x)


@disturbance("has the baseline's call do more", "functions", "what a contender is called or judged by")
def replaces_what_is_called() -> None:
    """The object that is called is the same."""
    run = _run()
    if run is not None and "dense" in run.subjects:
        call = run.subjects["dense"].call
        call.__setstate__((lambda *given: get("dense").sddmm(*given), call.args, call.keywords, {}))


@cheat("gives its judge other code", "functions, judge tried", "a contender is called or judged by")
class ChangesItsJudge(RightUntilTimed):
    """The judge is the same function."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        work = _work()
        if work is not None:
            one, other = (cell.cell_contents for cell in work.judge_output.__closure__)

            def lenient(*_: object) -> Any:
                return [] if one is not other else None

            work.judge_output.__code__ = lenient.__code__
        return made


@cheat("gives the baseline another call", "harness state", "who is timed")
class ReplacesAnothersCall(RightUntilTimed):
    """In the object that is timed next."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        run = _run()
        if run is not None and "dense" in run.subjects and not self.known:
            right = run.subjects["dense"].call
            self.known[""] = right
            run.subjects["dense"].call = lambda: right()
        return made


@cheat(
    "switches off what its sample is compared by", "harness state, process state", "reached into the harness"
)
class EmptiesItsSnapshot(RightUntilTimed):
    """A set of another content, which may get the very address of the one before."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        subject = _caller("subject")
        if isinstance(subject, Verified) and subject._process is not None:
            subject._process._on = frozenset()
            torch.set_default_dtype(torch.float64)
        return made


@cheat("puts another yardstick in its place", "harness state, functions", "reached into the harness")
class ReplacesTheYardstick(RightUntilTimed):
    """One that was made when all was changed already, with nothing in the old one."""

    def once_timed(self, made: Tensor, op: str, *given: Tensor) -> Tensor:
        """Right."""
        if functions._functions is not None and not any(f.f_code.co_name == "put_back" for f in callers()):
            functions._functions._seen = ((), (), ())
        return made
