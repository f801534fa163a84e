"""Python imports this as it starts in each process that a script under pft_bench.compat starts; see `..children`.

Most such processes are no workers of the script (multiprocessing's own, pip, ...), so nothing is imported here; what is
to be done waits until the process imports torch or what stands on it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))


class _Provided(Loader):
    """Loads what pft_bench.compat has put among the modules: `smm_cuda`, and `fairscale` where there is none."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


class _WhenTorchComes(MetaPathFinder):
    """Carries out what the parent does in its own process, right after torch has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec of torch that goes on with `_go_on`, or of a module that this provides; None for all others."""
        if name not in ("torch", "smm_cuda", "fairscale"):
            return None
        sys.meta_path.remove(self)
        if name != "torch":
            importlib.import_module("torch")
            _go_on()
            return importlib.util.spec_from_loader(name, _Provided()) if name in sys.modules else None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_go_on(module: ModuleType) -> None:
            execute(module)
            _go_on()

        spec.loader.exec_module = then_go_on  # type: ignore[method-assign]
        return spec


def _go_on() -> None:
    try:
        from pft_bench.compat.children import go_on
    except ImportError as error:  # another Python, which has its own packages
        print(f"pft_bench.compat: not in this process of {sys.executable}: {error}", file=sys.stderr)
        return
    go_on()


def _others() -> None:
    """The sitecustomize that this one hides, if there is one; and the script must not see this folder."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _WhenTorchComes())
_others()
