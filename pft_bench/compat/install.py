"""Putting our functions where the published code looks for its extension."""

from __future__ import annotations

import sys
from types import ModuleType

import torch

from ..backends import require
from . import smm

MARK = "__pft_bench__"
"""Attribute of the module that tells ours from the published extension."""


def install(backend: str = "auto") -> ModuleType:
    """Make ``import smm_cuda`` find this package's kernels, in this process.

    Args:
        backend: a name from `pft_bench.backends()`; "auto" chooses for each call by the tensors' device.

    Returns:
        The module. Calling it again changes the backend.

    Raises:
        RuntimeError: the published extension has been imported already, so whatever holds it would keep using it.
        pft_bench.BackendUnavailable, ValueError: no such backend, or it cannot run here.
    """
    if backend != "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        require(backend, torch.device(device), torch.float32)
    present = sys.modules.get("smm_cuda")
    if present is not None and not hasattr(present, MARK):
        raise RuntimeError(
            "smm_cuda must not have been imported before pft_bench.compat.install(), got "
            f"{getattr(present, '__file__', present)}"
        )
    module = ModuleType("smm_cuda", "The published extension's four functions, by pft_bench.")
    vars(module).update(smm.FUNCTIONS, **{MARK: True})
    smm.BACKEND = backend
    sys.modules["smm_cuda"] = module
    return module
