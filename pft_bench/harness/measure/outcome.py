"""What every result must be, whatever was computed: plain tensors in memory of their own, which nobody writes later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...common import entropy
from .guards import active

LOOKED_AT = 256
"""Values of each tensor that are remembered to see whether it changes."""


def tensors_of(output: object) -> Iterator[object]:
    """The parts of a result: itself, or the members of a tuple or list; what is None is left out."""
    if isinstance(output, tuple | list):
        for item in output:
            yield from tensors_of(item)
    elif output is not None:
        yield output


def _tells_its_own(kind: type) -> bool:
    """Whether a subclass of tuple or list could yield other items each time, or run code when it is freed."""
    plain = tuple if issubclass(kind, tuple) else list
    names = ("__iter__", "__getitem__", "__len__", "__del__")
    return any(getattr(kind, name, None) is not getattr(plain, name, None) for name in names)


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether it is of the right type and a transform of `torch.func`, a zero without memory or such all the same."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor._is_zerotensor())


def _memory(tensor: Tensor) -> tuple[str, int, int] | None:
    """Device, first byte and end of what the tensor's storage occupies; None where there is none."""
    parts = tensor.values() if tensor.layout != torch.strided else tensor
    storage = parts.untyped_storage()
    size = storage.nbytes()
    return (
        None
        if not size or not parts.numel()
        else (str(tensor.device), storage.data_ptr(), storage.data_ptr() + size)
    )


def _overlap(one: Tensor, others: Iterable[Tensor]) -> bool:
    mine = _memory(one)
    theirs = (_memory(other) for other in others)
    return mine is not None and any(
        other is not None and mine[0] == other[0] and mine[1] < other[2] and other[1] < mine[2]
        for other in theirs
    )


def broken_law(output: object, inputs: Sequence[Tensor], held: Sequence[object]) -> str:
    """Why `output` cannot be a result, in words; empty if it can.

    Args:
        output: what a call returned.
        inputs: the tensors that it was given.
        held: results of earlier calls that somebody still holds.
    """
    if isinstance(output, tuple | list) and active("result kind") and _tells_its_own(type(output)):
        return f"the result must be a tensor or a plain tuple of tensors, got {type(output).__name__}"
    parts = list(tensors_of(output))
    if not parts:
        return "the result is empty"
    for part in parts:
        if type(part) is not Tensor and active("result kind"):
            return f"the result must be of type torch.Tensor exactly, got {type(part).__module__}.{type(part).__name__}"
        if active("result kind") and vars(part):
            return f"the result carries attributes of its own ({', '.join(vars(part))}), which could compute when read"
        if active("result kind") and isinstance(part, Tensor) and (part.is_neg() or part.is_conj()):
            return "the result is a view that negates when it is read, expected values"
        if active("result kind") and isinstance(part, Tensor) and _is_wrapped(part):
            return "the result is a wrapper around another tensor, or zeros without memory, expected values"
    tensors = [part for part in parts if isinstance(part, Tensor)]
    earlier = [part for item in held for part in tensors_of(item) if isinstance(part, Tensor)]
    for tensor in tensors if active("result memory") else ():
        if _overlap(tensor, inputs):
            return "the result lies in the memory of an input"
        if _overlap(tensor, earlier):
            return (
                "the result lies in the memory of an earlier result that is still held: a static output buffer, or a "
                "result handed out again"
            )
    return ""


def size_bytes(output: object) -> int:
    """Bytes that a result holds."""
    memories = [_memory(part) for part in tensors_of(output) if isinstance(part, Tensor)]
    return sum(memory[2] - memory[1] for memory in memories if memory is not None)


def spoiled(output: object) -> object:
    """A copy of a result whose every value is wrong."""
    if isinstance(output, tuple | list):
        return type(output)(spoiled(item) for item in output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    wrong = output.detach().clone()
    (wrong.values() if wrong.layout != torch.strided else wrong).mul_(1.25).add_(0.5)
    return wrong


class Remembered:
    """A few values of each tensor of a result, copied when it came."""

    def __init__(self, output: object) -> None:
        parts = [part for part in tensors_of(output) if type(part) is Tensor]
        strided = [part.values() if part.layout != torch.strided else part for part in parts]
        self._looked = [(part.detach(), places) for part in strided if (places := _places(part)) is not None]
        self._values = [part[places].clone() for part, places in self._looked]

    def same(self) -> bool:
        """Whether they are still what they were, bit for bit."""
        return not active("result stays") or all(
            _bits(part[places]) == _bits(value)
            for (part, places), value in zip(self._looked, self._values, strict=True)
        )


def _places(tensor: Tensor) -> tuple[Tensor, ...] | None:
    count = tensor.numel()
    if not count:
        return None
    drawn = torch.tensor(entropy.some(count, LOOKED_AT), device=tensor.device)
    return torch.unravel_index(drawn, tensor.shape) if tensor.dim() else ()


def _bits(values: Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
