"""How a kernel is started: one description that can be run, or compiled ahead of time for a GPU that is not here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton

from .config import Config

# Products may be fused with the additions that follow. Triton >= 3.9 warns where this is left to its default, which
# is about to change; as an option of each launch it means the same in every version since 3.5.
FP_FUSION = True

_POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of running them: what an op would start, for tensors on the meta device."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


@dataclass(frozen=True)
class Launch:
    """One kernel launch. Tensors may be on the meta device when it is only to be compiled."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    config: Config

    def __post_init__(self) -> None:
        """Refuse what the kernels' 32-bit offsets inside a window-head and CUDA's grids cannot hold."""
        if self.grid >= 2**31:
            raise RuntimeError(f"{self.name}: a launch has fewer than 2^31 programs, got {self.grid}")
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] * value.shape[3] >= 2**31:
                raise RuntimeError(
                    f"{self.name}: {name} must have fewer than 2^31 elements in a window-head, "
                    f"got {list(value.shape)}"
                )

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return str(self.kernel.__name__).removesuffix("_kernel")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
            "enable_fp_fusion": FP_FUSION,
        }
        return options | {"maxnreg": self.config.registers} if self.config.registers else options

    def run(self) -> None:
        """Start the kernel on the current stream; nothing happens for an empty grid."""
        if _recorded is not None:
            _recorded.append(self)
        elif self.grid:
            self.kernel[(self.grid,)](**self.arguments, **self.constants, **self._options())

    def shared_bytes(self) -> int:
        """Shared memory of a program on the current GPU; compiles the kernel without running it."""
        compiled = self.kernel.warmup(
            **self.arguments, **self.constants, **self._options(), grid=(max(self.grid, 1),)
        )
        return int(compiled.metadata.shared)

    def compile(self, target: Any) -> Any:
        """The kernel compiled for `target` (triton.backends.compiler.GPUTarget), specialised as a launch would."""
        from triton.compiler import ASTSource

        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], list[list[object]]] = {}
        for place, name in enumerate(self.kernel.arg_names):
            value = self.constants[name] if name in self.constants else self.arguments[name]
            kind = _kind(value, constant=name in self.constants)
            signature[name] = kind
            if kind == "constexpr":
                constants[name] = value
            elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=self._options())


def _kind(value: object, *, constant: bool) -> str:
    """Type of an argument in Triton's notation, with the specialisations that a launch applies."""
    if constant or value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return _POINTER[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    raise TypeError(
        f"a kernel argument must be a tensor, an int, a float or None, got {type(value).__name__}"
    )


def tiles(size: int, tile: int) -> int:
    """Number of tiles that cover `size`."""
    return -(-size // tile)


def padded(size: int, least: int = 1) -> int:
    """The next power of two, at least `least`: tile sizes are powers of two."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def vector(*tensors: Tensor) -> int:
    """The largest power of two up to 8 that divides every stride of the tensors.

    Kernels take strides in this unit and multiply, so that the compiler knows the alignment of rows and can load
    several channels at once: a row of 40 half-precision channels is five 16-byte loads.
    """
    return math.gcd(8, *(stride for tensor in tensors for stride in tensor.stride()[:-1]))


def strides(prefix: str, tensor: Tensor, unit: int = 1) -> dict[str, int]:
    """Strides of [W, H, rows, D] in `unit` elements, as the kernel arguments `prefix`w, `prefix`h and `prefix`n."""
    window, head, row, _ = tensor.stride()
    if abs(row) * max(tensor.shape[2], 1) >= 2**31:
        raise RuntimeError(f"rows of one head must span fewer than 2^31 elements, got stride {row}")
    return {f"{prefix}w": window // unit, f"{prefix}h": head // unit, f"{prefix}n": row // unit}
