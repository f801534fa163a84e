"""Plug-ins: a user's modules, which register their own backends (`pft_bench.backends.register`)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from ...common.processes import foreign_code_ran
from ..measure.process_state import ProcessChanged, importing

_MUST = "--plugin must be a module or a .py file that can be imported"


def load_plugin(name: str, *, lasting: bool = True) -> ModuleType:
    """Import a plug-in, given as a dotted module name or as the path of a .py file; once a process. Unless the process
    is `lasting`, what a failed import has replaced in torch need not be taken back: it ends with it.

    Raises:
        ValueError: there is no such module or file, or importing it fails, or changes the harness.
    """
    if wrong := _no_file(name):
        raise ValueError(f"{_MUST}, got {name!r}: {wrong}")
    try:
        if not name.endswith(".py"):
            with importing(whole=lasting):
                return importlib.import_module(name)
        path = Path(name).resolve()
        module_name = f"pft_bench_plugin_{path.stem}"
        known = sys.modules.get(module_name)
        if known is not None and known.__file__ == str(path):
            return known
        found = importlib.util.spec_from_file_location(module_name, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module
        try:
            with importing(whole=lasting):
                found.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            told = _instead(Path(name))
        elif isinstance(error, ProcessChanged):
            told = str(error)
        else:
            told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{_MUST}, got {name!r}: {told}") from error


def _no_file(name: str) -> str:
    """Why a name that can only be that of a file is none of a plug-in's; empty where it may be one, or a module's."""
    if name.endswith(".py"):
        path = Path(name)
        return "" if path.is_file() else "that is a folder" if path.is_dir() else "there is no such file"
    return "" if all(map(str.isidentifier, name.split("."))) else _instead(Path(name))


def _instead(path: Path) -> str:
    """What a name that is no module's stands for."""
    if path.is_file():
        return "the name of a file must end in .py"
    return "that is a folder" if path.name and path.is_dir() else "there is no such module or file"


def load_plugins(names: Sequence[str], *, lasting: bool = True) -> dict[str, str]:
    """Import all of them; name -> digest of its source, for the environment of the records."""
    if names:
        foreign_code_ran()
    for name in names:
        load_plugin(name, lasting=lasting)
    return {name: _digest(name) for name in names}


def edited(plugins: Mapping[str, str]) -> list[str]:
    """Plug-ins whose source has changed since `load_plugins`."""
    return [name for name, digest in plugins.items() if _digest(name) != digest]


def _digest(name: str) -> str:
    source = name if name.endswith(".py") else getattr(sys.modules.get(name), "__file__", None)
    content = b""
    if source is not None:
        with suppress(OSError):
            content = Path(source).read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]
