"""``python -m pft_bench.compat SCRIPT ARGS...``: an unmodified script of the published code on our kernels."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..backends import BackendUnavailable
from ..common.container import respect_quota
from .children import bring_children
from .fairscale import provide_fairscale
from .install import install
from .no_gpu import stay_on_cpu


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pft_bench.compat",
        description="Run a Python script with smm_cuda provided by pft_bench. Without a GPU, or with --cpu, the "
        "script's 'cuda' means the CPU, in its threads and processes, too; streams, events, memory statistics and NCCL "
        "are not covered, and say so. What else the script imports (torchvision, opencv, ...) must be installed; "
        "fairscale's checkpoint_wrapper is provided where it is missing.",
    )
    parser.add_argument("--backend", default="auto", help="backend of the kernels; default: by the device")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script as `python SCRIPT ARGS...` would; its exit code and its errors are its own."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.module and not Path(given.script).exists():
        parser.error(f"SCRIPT must be a file, got {given.script!r}: there is no such file")
    respect_quota()
    if given.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for what of torch asks the driver itself
    try:
        install(given.backend)
    except (BackendUnavailable, ValueError, TypeError, RuntimeError) as error:
        parser.error(str(error))
    on_cpu = given.cpu or not torch.cuda.is_available()
    told = ["smm_cuda is pft_bench's"]
    if provide_fairscale():
        told.append("fairscale is not installed: its checkpoint_wrapper is PyTorch's checkpoint")
    if on_cpu:
        stay_on_cpu()
        told.append("'cuda' means the CPU")
    print(f"pft_bench.compat: {'; '.join(told)}", file=sys.stderr)
    bring_children(given.backend, on_cpu)
    sys.argv = [given.script, *given.arguments]
    if given.module:
        sys.path.insert(0, "")
        runpy.run_module(given.script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(given.script).resolve().parent))
        runpy.run_path(given.script, run_name="__main__")


if __name__ == "__main__":
    main()
