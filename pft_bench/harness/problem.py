"""One benchmark problem: an op with its shapes, dtype and seed; its inputs, FLOPs and bytes.

The counts are what the algorithm must do, whoever does it: every operand is read once per window-head, every output
is written once. They are the roofline's numbers (kernel_flops and kernel_bytes); what an implementation really
executes is counted elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference import Layer, index_dtype
from .inputs import layer, product

OPS = ("sddmm", "spmm", "spmm_transpose", "attention")
MODES = ("infer", "train", "backward")


def parse_dtype(name: str) -> torch.dtype:
    """A floating-point dtype by its name; ValueError for anything else."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {name!r}")
    return dtype


@dataclass(frozen=True)
class Problem:
    """`op` on `windows` x `heads` window-heads of `tokens` tokens, as PFT calls it (queries = keys = tokens).

    `candidates` are the entries a row comes with (tokens: dense), `kept` those it keeps; they are equal for the sparse
    products. `mode` "train" means forward and backward, "backward" the latter alone.
    """

    op: str
    windows: int
    heads: int
    tokens: int
    head_dim: int
    candidates: int
    kept: int
    dtype: str = "float32"
    mode: str = "infer"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"op must be one of {', '.join(OPS)}, got {self.op!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not 1 <= self.kept <= self.candidates <= self.tokens:
            raise ValueError(
                f"kept and candidates must satisfy 1 <= kept <= candidates <= tokens, "
                f"got {self.kept}, {self.candidates}, {self.tokens}"
            )
        if self.op != "attention" and self.kept != self.candidates:
            raise ValueError(f"{self.op} keeps all its candidates, got {self.kept} of {self.candidates}")
        parse_dtype(self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return parse_dtype(self.dtype)

    @property
    def batch(self) -> int:
        """Window-heads."""
        return self.windows * self.heads

    @property
    def is_dense(self) -> bool:
        """Whether every token is a candidate."""
        return self.candidates == self.tokens

    @property
    def window_size(self) -> int | None:
        """Side of the window, None where the tokens do not form a square."""
        side = math.isqrt(self.tokens)
        return side if side * side == self.tokens else None

    def describe(self) -> dict[str, Any]:
        """All fields, for a record."""
        return asdict(self)

    # -- counts ----------------------------------------------------------------------------------------------------

    def kernel_flops(self) -> int:
        """Floating-point operations the algorithm must do: 2 per multiply-add of the products.

        Forward: q.k on the candidates, A.v on the kept entries. Backward: dq and dk on the candidates, dA and dv on the
        kept entries. The exponentials and the selection are left out.
        """
        rows = self.batch * self.tokens
        qk = 2 * rows * self.candidates * self.head_dim
        av = 2 * rows * self.kept * self.head_dim
        forward = {"sddmm": qk, "attention": qk + av}.get(self.op, av)
        return {"infer": 1, "train": 3, "backward": 2}[self.mode] * forward

    def kernel_bytes(self) -> int:
        """Bytes that must move between memory and the chip: each operand and output once.

        q, k, v and out are `batch * tokens * head_dim` values; the index has 2 bytes an entry; the kept logits are
        float32, read where the chain is sparse and written where it stays or becomes so. Backward has the gradients of
        all of these, and reads the forward's operands again.
        """
        item = torch.empty(0, dtype=self.torch_dtype).element_size()
        rows = self.batch * self.tokens
        matrix = rows * self.head_dim * item
        index = rows * self.candidates * index_dtype(self.tokens).itemsize
        if self.op == "sddmm":
            entries = rows * self.kept * item
            return self._with_backward(2 * matrix + entries, index)
        if self.op in ("spmm", "spmm_transpose"):
            entries = rows * self.kept * item
            return self._with_backward(2 * matrix + entries, index)
        table = 0 if self.window_size is None else (2 * self.window_size - 1) ** 2 * self.heads * 4
        read_logits = 0 if self.is_dense else rows * self.candidates * 4
        selects = self.kept < self.candidates
        written = 0 if self.is_dense and not selects else rows * self.kept * 4
        new_index = rows * self.kept * index_dtype(self.tokens).itemsize if selects else 0
        read_index = 0 if self.is_dense else index
        return self._with_backward(4 * matrix + table + read_logits + written, read_index + new_index)

    def _with_backward(self, values: int, index: int) -> int:
        """Bytes of the forward, of the backward (values again, their gradients, the index again), or of both."""
        forward, backward = values + index, 2 * values + index
        return {"infer": forward, "train": forward + backward, "backward": backward}[self.mode]

    # -- inputs ----------------------------------------------------------------------------------------------------

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The problem's tensors, the same for the same seed: standard normal q, k, v, a random ascending index.

        sddmm: q, k [B, N, D], index [B, N, K]. spmm: a [B, N, K] (rows sum to 1), v, index; spmm_transpose: a, x,
        index. attention: q, k, v [W, H, N, D] as views of one [W, N, 3, H, D] projection, bias [T, H] where the window
        is square, and index, logits [W, H, N, C] where the chain is sparse.
        """
        if self.op == "attention":
            return self.layer(device).tensors()
        sizes = (self.batch, self.tokens, self.tokens, self.head_dim, self.kept)
        return product(
            self.op, *sizes, seed=self.seed, dtype=self.torch_dtype, device=device, model_like=True
        )

    def layer(self, device: torch.device | str = "cpu") -> Layer:
        """The layer that an attention problem describes, on its own inputs."""
        return layer(
            windows=self.windows,
            heads=self.heads,
            tokens=self.tokens,
            dim=self.head_dim,
            candidates=None if self.is_dense else self.candidates,
            topk=self.kept,
            bias=self.window_size is not None,
            dtype=self.torch_dtype,
            seed=self.seed,
            device=device,
        )
