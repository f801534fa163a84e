"""Plug-ins: a user's modules, which register their own backends (`pft_bench.backends.register`)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


def load_plugin(name: str) -> ModuleType:
    """Import a plug-in, given as a dotted module name or as the path of a .py file; once a process.

    Raises:
        ValueError: there is no such module or file, or importing it fails.
    """
    try:
        if not name.endswith(".py"):
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
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"--plugin must be a module or a .py file that can be imported, got {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def load_plugins(names: Sequence[str]) -> dict[str, str]:
    """Import all of them; name -> digest of its source, for the environment of the records."""
    digests = {}
    for name in names:
        source = load_plugin(name).__file__
        content = b"" if source is None else Path(source).read_bytes()
        digests[name] = hashlib.sha256(content).hexdigest()[:12]
    return digests
