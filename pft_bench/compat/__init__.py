"""The published code on this package's kernels: `smm_cuda` without building it, on a CPU or a GPU.

``python -m pft_bench.compat SCRIPT ARGS...`` runs an unmodified script. Inside a program, `install` does it, before
whatever imports `smm_cuda`.
"""

from .install import install

__all__ = ["install"]
