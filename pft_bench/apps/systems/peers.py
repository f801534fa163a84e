"""The compared models of other authors, from the package `spandrel`: imported without what they do not need.

`spandrel` names torch and torchvision as what it depends on, so that a plain ``pip install spandrel`` may replace the
user's torch by another build. It is therefore not among this package's extras: `INSTALL` installs it alone. And
importing any of its architectures imports them all, two of which (LaMa, RestoreFormer) take three functions from
torchvision, whose wheels do not load beside a CPU build of torch. Where torchvision does not import, a stand-in with
these three names takes its place for the time of the import, and is gone afterwards.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import nn

from .facts import System

INSTALL = (
    "make systems, or: pip install einops typing_extensions && pip install --no-deps 'spandrel>=0.4,<0.5'"
)
"""What installs spandrel and leaves torch alone."""

_NAMES = ("InterpolationMode", "normalize", "rotate")


class PeersMissing(ImportError):
    """The package that holds the compared models cannot be imported; the message says what to do."""


def make_system(system: System) -> nn.Module:
    """The model of a compared system with random weights, in evaluation mode.

    Raises PeersMissing where spandrel is not installed.
    """
    if system.network is not None:
        return system.network().eval()
    if system.architecture is None:
        raise ValueError(f"{system.name} has no model here: {system.published.source}")
    try:
        with _torchvision_or_stand_in():
            module = importlib.import_module(f"spandrel.architectures.{system.architecture}")
    except ImportError as error:
        raise PeersMissing(f"{system.name} needs spandrel ({error}): {INSTALL}") from error
    model: nn.Module = getattr(module, system.architecture)(**system.keywords)
    return model.eval()


@contextmanager
def _torchvision_or_stand_in() -> Iterator[None]:
    """Let ``from torchvision.transforms.functional import ...`` succeed inside this context."""
    before = _torchvision_modules()
    try:
        importlib.import_module("torchvision.transforms.functional")
    except Exception:  # absent, or built for another torch: then it raises RuntimeError, too
        pass
    else:
        yield
        return
    _replace_torchvision(_stand_in())  # also what the failed import left behind
    try:
        yield
    finally:
        _replace_torchvision(before)


def _torchvision_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}


def _replace_torchvision(modules: dict[str, ModuleType]) -> None:
    for name in _torchvision_modules():
        del sys.modules[name]
    sys.modules.update(modules)


def _stand_in() -> dict[str, ModuleType]:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("torchvision does not import here, and this model needs it")

    made = {
        name: ModuleType(name, "Stands in for torchvision while pft_bench imports spandrel.")
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    }
    for name in _NAMES:
        setattr(made["torchvision.transforms.functional"], name, missing)
    return made
