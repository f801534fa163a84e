"""What a backend is, and the registry that finds one by name.

A backend adapts one family of kernels. Backends never import each other, and nothing ever falls back silently:
a backend that cannot run says why and what to do.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu

from ..common.messages import UserError
from ..reference import Layer, accumulation_dtype, index_dtype

Maybe = Tensor | None
AttentionForward = tuple[Tensor, Tensor, Tensor, Tensor]
AttentionBackward = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class LayerShape(NamedTuple):
    """One layer of progressive attention, as far as its memory is concerned; N = M = `tokens` = window_size^2."""

    windows: int
    heads: int
    tokens: int
    dim_qk: int
    dim_v: int
    candidates: int
    """Equal to `tokens` where the chain is dense."""
    kept: int


class Rung(NamedTuple):
    """One step of a family's ladder: a kernel that is taken wherever it can be, whatever the family would choose."""

    summary: str
    ops: frozenset[str]
    """What it decides: names of `Backend`'s ops. All others are the family's own."""
    layers: str = "any"
    """Of attention_forward: which layers it decides, `dense`, `sparse` or `any`."""


class Backend:
    """One family of kernels. Arguments arrive validated, detached, with unit stride along the last dimension."""

    name: str
    summary: str
    dtypes: frozenset[torch.dtype]
    devices: frozenset[str]
    composite: bool = False
    """True: plain PyTorch that differentiates itself. False: raw kernels behind the torch.library ops."""
    timed: bool = True
    """False for what is only ever checked: an emulator's time says nothing about the kernel."""
    same_bits: bool = False
    """Whether results are bitwise the same for any number of CPU threads: a promise that level threads holds it to."""
    rungs: Mapping[str, Rung] = MappingProxyType({})
    """The steps of this family's ladder by name: `get("cuda-plain")` is the backend `cuda` on its rung `plain`."""

    def on_rung(self, rung: str) -> Backend:
        """A backend of its own, called `<name>-<rung>`, that always takes this rung."""
        raise NotImplementedError(f"backend {self.name!r} has no rungs")

    def available(self) -> str | None:
        """None when the backend can run here, else the reason and what to do."""
        raise NotImplementedError(f"backend {self.name!r} must return None here, or why it cannot run")

    def sddmm(self, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """[B, N, K] from q [B, N, D], k [B, M, D], index [B, N, K]."""
        raise self._lacks("sddmm")

    def spmm(self, a: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """[B, N, D] from a and index [B, N, K], v [B, M, D]."""
        raise self._lacks("spmm")

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        """[B, M, D] from a and index [B, N, K], x [B, N, D]."""
        raise self._lacks("spmm_transpose")

    def attention_forward(self, layer: Layer) -> AttentionForward:
        """One layer, as `pft_bench.reference.attention` specifies it: out, new index, new logits, logsumexp."""
        raise self._lacks("attention_forward")

    def attention_backward(
        self, layer: Layer, grad_out: Tensor, grad_logits: Maybe, new_index: Tensor, out: Tensor, lse: Tensor
    ) -> AttentionBackward:
        """Gradients of q, k, v, bias and the earlier logits (the last two None where there were none).

        `grad_out` and `grad_logits` (None: zero) are those of the forward pass's out and new logits; `new_index`, `out`
        and `lse` are what it returned.
        """
        raise self._lacks("attention_backward")

    def depthwise_gelu_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, first_row: int
    ) -> Tensor:
        """[B, rows, w, C] from images x [B, h, w, C], as `ops.depthwise_gelu_add` says; here by PyTorch's operators."""
        # [B, C, h, w] as PyTorch wants it, without a copy: that is its channels-last format.
        y = conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        y = gelu(y) if y.requires_grad else torch.ops.aten.gelu_(y)
        made = y.permute(0, 2, 3, 1)[:, first_row : first_row + residual.shape[1]].contiguous()
        return made + residual if made.requires_grad else made.add_(residual)

    def attention_work_bytes(self, shape: LayerShape, threads: int) -> int:
        """Most bytes that `attention_forward` holds beside its arguments and results (float32)."""
        return 0

    def _lacks(self, op: str) -> NotImplementedError:
        return NotImplementedError(f"backend {self.name!r} has no {op}, which this case needs")


Product = TypeVar("Product", bound=Callable[..., Tensor])


class BadIndex(Exception):
    """An index that a product was to check has a fault. What is wrong with it the caller finds out, and says."""


def checks_index(product: Product) -> Product:
    """Mark a product of a backend that takes `checked=False`, for an index whose entries nobody has looked at.

    The index is then any contiguous int16, int32 or int64 tensor [B, N, K]. The product raises `BadIndex` unless each
    row holds distinct keys in range, and reads nothing that a bad entry names.
    """
    product.checks_index = True  # type: ignore[attr-defined]
    return product


def can_check_index(product: Callable[..., Tensor]) -> bool:
    """Whether `checks_index` marks this very method: one that overrides it does not inherit the mark."""
    return getattr(product, "checks_index", False)


class PlainBackend(Backend):
    """Plain PyTorch on any device, in any dtype; PyTorch differentiates it."""

    dtypes = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
    devices = frozenset({"cpu", "cuda"})
    composite = True

    def available(self) -> str | None:
        """Always."""
        return None


class BackendInfo(NamedTuple):
    """One row of `pft_bench.backends()`."""

    name: str
    available: bool
    reason: str
    """Why it is not available and what to do; what it is, when it is available."""


class BackendUnavailable(UserError, RuntimeError):
    """A backend was asked for that cannot run here."""


_CLASSES = {
    "dense": "DenseBackend",
    "reference": "ReferenceBackend",
    "cpu": "CpuBackend",
    "triton": "TritonBackend",
    "cuda": "CudaBackend",
    "cuda-emu": "CudaEmulatorBackend",
    "official": "OfficialBackend",
}
"""Name of each backend -> its class, in the module of that name."""
# Name -> module and class. Modules are imported when first asked for, so that a broken optional part hurts nobody.
_BACKENDS = {name: (name.replace("-", "_"), kind) for name, kind in _CLASSES.items()}
_OWN = frozenset(_BACKENDS)
# The order in which backend="auto" looks, by device type; plain PyTorch last, for dtypes without a kernel.
_PREFERENCE = {"cpu": ("cpu", "dense"), "cuda": ("cuda", "triton", "dense")}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

_loaded: dict[str, Backend] = {}


def register(kind: type[Backend]) -> type[Backend]:
    """Make a backend known by its name, for one that lives outside of this package; usable as a decorator.

    Raises:
        ValueError: the name belongs to another backend already, or has characters that commands or tables read
            otherwise (a comma, markup).
    """
    if not isinstance(kind.name, str) or not _NAME.fullmatch(kind.name):
        raise ValueError(
            f"a backend's name must be at most 40 letters, digits, '.', '_' and '-', with a letter or digit first, "
            f"got {kind.name!r}"
        )
    path = (kind.__module__, kind.__qualname__)
    if _BACKENDS.get(kind.name, path) != path:
        raise ValueError(f"backend name {kind.name!r} is taken already, by {_BACKENDS[kind.name][1]}")
    family = _family(kind.name)
    if family is not None:
        raise ValueError(f"backend name {kind.name!r} is taken already, by a rung of {family!r}")
    _BACKENDS[kind.name] = path
    _loaded[kind.name] = kind()
    return kind


@contextmanager
def lent(kind: type[Backend]) -> Iterator[Backend]:
    """A backend that is known for as long as this lasts."""
    register(kind)
    try:
        yield _loaded[kind.name]
    finally:
        del _BACKENDS[kind.name], _loaded[kind.name]


def registered() -> tuple[str, ...]:
    """Names of the backends that `register` added."""
    return tuple(name for name in _BACKENDS if name not in _OWN)


def names() -> tuple[str, ...]:
    """All backend names, available or not; without rungs, which `rungs` names."""
    return tuple(_BACKENDS)


def rungs(name: str) -> tuple[str, ...]:
    """Names of the backends that are rungs of the backend `name`: what `get` takes."""
    return tuple(f"{name}-{rung}" for rung in get(name).rungs)


def _family(name: str) -> str | None:
    """The backend that `name` is a rung of; None where it is none. Asks those alone whose name it begins with."""
    for family in _BACKENDS:
        if name.startswith(f"{family}-") and name not in _BACKENDS and name in rungs(family):
            return family
    return None


def get(name: str) -> Backend:
    """The backend called `name`, whether available or not; a rung of one too (`cuda-plain`)."""
    if not isinstance(name, str):
        raise _unknown(name)
    if name in _loaded:
        return _loaded[name]
    family = _family(name)
    if family is not None:
        _loaded[name] = get(family).on_rung(name.removeprefix(f"{family}-"))
    elif name not in _BACKENDS:
        raise _unknown(name)
    else:
        module, cls = _BACKENDS[name]
        _loaded[name] = getattr(importlib.import_module(f"{__package__}.{module}"), cls)()
    return _loaded[name]


def unavailable(backend: Backend) -> str | None:
    """What `backend.available()` says, or that it raised: one that is broken must not end what others do."""
    try:
        reason: object = backend.available()
    except Exception as error:
        return f"its available() raised {type(error).__name__}: {error}"
    if reason is None or isinstance(reason, str):
        return reason
    return f"its available() must return None or why not, got {reason!r}"


def _unknown(name: object) -> ValueError:
    return ValueError(
        f"backend must be 'auto' or one of {', '.join(map(repr, _BACKENDS))} "
        f"(`pft-bench doctor` names their rungs too; --plugin FILE.py adds what it decorates with `register`), "
        f"got {name!r}"
    )


def require(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend `name` ("auto": the preferred one) for tensors of this device and dtype, or an error."""
    return _loaded[_usable(name, device, dtype)]


def _usable(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of that backend, which is loaded now."""
    if name == "auto":
        return _preferred(device, dtype).name
    backend = get(name)
    reason = unavailable(backend)
    if reason is not None:
        raise BackendUnavailable(f"backend {name!r} is not available: {reason}")
    if device.type not in backend.devices:
        raise ValueError(f"backend {name!r} takes tensors on {_either(backend.devices)}, got {device}")
    if dtype not in backend.dtypes:
        raise TypeError(f"backend {name!r} takes {_either(map(str, backend.dtypes))}, got {dtype}")
    return name


# torch.compile calls it and keeps the answer, instead of looking into it: it could not follow the import.
_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _preferred(device: torch.device, dtype: torch.dtype) -> Backend:
    passed: list[str] = []
    kind = device.type
    for name in _PREFERENCE.get(kind, ("reference",)):
        backend = _loaded.get(name) or get(name)
        if dtype not in backend.dtypes or kind not in backend.devices:
            continue
        reason = unavailable(backend)
        if reason is None:
            if passed:
                _tell_passed(name, passed)
            return backend
        passed.append(f"{name!r} is not available: {reason}")
    raise BackendUnavailable(f"no backend takes {dtype} tensors on {device}; see pft_bench.backends()")


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _tell_passed(name: str, passed: Sequence[str]) -> None:
    """Nobody gets a slower backend without a word: one warning a process for each reason."""
    _warn_once(f"backend 'auto' takes {name!r}: {'; '.join(passed)}")


def _either(values: Sequence[str] | Iterator[str] | frozenset[str]) -> str:
    return " or ".join(sorted(values))


def backends() -> list[BackendInfo]:
    """Every backend: its name, whether it can run here, and why not or what it is."""
    rows = []
    for name in _BACKENDS:
        backend = get(name)
        reason = unavailable(backend)
        rows.append(BackendInfo(name, reason is None, backend.summary if reason is None else reason))
    return rows


_fill: float | None = None


@contextmanager
def _filled(value: float) -> Iterator[None]:
    global _fill
    previous, _fill = _fill, value
    try:
        yield
    finally:
        _fill = previous


def poisoned() -> AbstractContextManager[None]:
    """Fill what `empty` returns with NaN (0x7f bytes for integers), so that a value nobody wrote shows."""
    return _filled(math.nan)


def cleared() -> AbstractContextManager[None]:
    """Fill what `empty` returns with zeros, where not all of it is going to be written."""
    return _filled(0.0)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for an output or a workspace of a raw kernel, contiguous; filled while in `poisoned()` or `cleared()`."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if _fill is not None and tensor.numel():
        if dtype.is_floating_point or _fill == 0:
            tensor.fill_(_fill)
        else:
            tensor.view(torch.uint8).fill_(0xFF if dtype == torch.uint8 else 0x7F)
    return tensor


def empty_token_major(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`empty` [W, H, N, D] in the memory order [W, N, H, D], in which the projection that follows reads it."""
    windows, heads, tokens, dim = shape
    return empty((windows, tokens, heads, dim), dtype, device).transpose(1, 2)


def empty_outputs(layer: Layer) -> AttentionForward:
    """Memory for what `attention_forward` returns: out, new index, new logits, logsumexp."""
    rows, device, wide = layer.rows, layer.q.device, accumulation_dtype(layer.q.dtype)
    return (
        empty_token_major((*rows, layer.v.shape[-1]), layer.v.dtype, device),
        empty((*rows, layer.kept), index_dtype(layer.keys), device),
        empty((*rows, layer.handed_on), wide, device),
        empty(rows, wide, device),
    )


def empty_gradients(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of q, k and v."""
    grad_q, grad_k, grad_v = (
        empty_token_major(like.shape, like.dtype, like.device) for like in (layer.q, layer.k, layer.v)
    )
    return grad_q, grad_k, grad_v
