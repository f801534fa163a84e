"""The one function of `fairscale` that the published model imports, for those who do not have the package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_wrapper(module: nn.Module, offload_to_cpu: bool = False) -> nn.Module:
    """Let `module` keep no activations and compute them again in backward; nothing is offloaded."""
    forward = module.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    module.forward = wrapped
    return module


def provide_fairscale() -> bool:
    """Provide ``fairscale.nn.checkpoint_wrapper`` where fairscale is not installed; whether it was needed."""
    if "fairscale" in sys.modules or importlib.util.find_spec("fairscale") is not None:
        return False
    package, part = ModuleType("fairscale"), ModuleType("fairscale.nn")
    vars(part)["checkpoint_wrapper"] = checkpoint_wrapper
    vars(package)["nn"] = part
    sys.modules |= {"fairscale": package, "fairscale.nn": part}
    return True
