"""Every way in which a script names the device "cuda", read as the CPU.

Functions and types of torch are replaced rather than watched by a `TorchFunctionMode`: a mode holds for one thread, and
is off inside autograd's hooks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import nn

Patch: TypeAlias = tuple[Any, str, Any]
"""A module or class, the name of an attribute of it, and what stands there from now on."""

DEVICE, GENERATOR = torch.device, torch.Generator
# Functions that take a device by keyword, by their names in torch.
FACTORIES = (
    *("arange", "as_tensor", "asarray", "bartlett_window", "blackman_window", "empty", "empty_like"),
    *(
        "empty_permuted",
        "empty_quantized",
        "empty_strided",
        "eye",
        "fft.fftfreq",
        "fft.rfftfreq",
        "from_file",
    ),
    *("full", "full_like", "hamming_window", "hann_window", "kaiser_window", "linspace", "logspace"),
    *("nested.as_nested_tensor", "nested.nested_tensor", "normal", "ones", "ones_like", "rand", "rand_like"),
    *("randint", "randint_like", "randn", "randn_like", "randperm", "range", "scalar_tensor"),
    *("sparse_bsc_tensor", "sparse_bsr_tensor", "sparse_compressed_tensor", "sparse_coo_tensor"),
    *(
        "sparse_csc_tensor",
        "sparse_csr_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
        "zeros_like",
    ),
)
METHODS = ("new", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros", "type")
# Functions whose first argument is a device, or the name of its type.
BY_POSITION = (
    *("set_default_device", "set_default_tensor_type", "get_autocast_dtype", "set_autocast_dtype"),
    *("set_autocast_enabled", "amp.is_autocast_available"),
)


def on_cpu(value: Any) -> Any:
    """`value`, or the CPU where it is a name of the device "cuda"."""
    if isinstance(value, DEVICE) and value.type == "cuda":
        return DEVICE("cpu")
    if isinstance(value, str):
        if re.fullmatch(r"cuda(:\d+)?", value):
            return "cpu"
        if value.startswith("torch.cuda."):  # torch.cuda.FloatTensor
            return "torch." + value.removeprefix("torch.cuda.")
    return value


def device_on_cpu(value: Any) -> Any:
    """The same for an argument that is a device, so that a number is one, too."""
    number = type(value) is not bool and isinstance(value, Integral)
    return "cpu" if number else on_cpu(value)


def reading_devices(function: Callable[..., Any], position: int | None = None) -> Callable[..., Any]:
    """`function`, which gets the CPU instead of "cuda" in any argument; a number is a device at `position`.

    Pinned memory is for copies to a GPU, so what is made here is not pinned.
    """

    @functools.wraps(function)
    def here(*args: Any, **keywords: Any) -> Any:
        given = [device_on_cpu(arg) if at == position else on_cpu(arg) for at, arg in enumerate(args)]
        named = {
            name: (device_on_cpu if name == "device" else on_cpu)(arg)
            for name, arg in keywords.items()
            if name != "pin_memory"
        }
        return function(*given, **named)

    return here


def _itself() -> Callable[..., Any]:
    """What `.cuda()` and `.pin_memory()` are: the thing is where it has to be."""
    return lambda thing, *_, **__: thing


def _stand_in(real: type, make: Callable[..., Any]) -> type:
    """A type that is called in place of `real`, a type of C; its instances are those of `real`."""

    class Meta(type):
        def __call__(cls, *args: Any, **keywords: Any) -> Any:
            return make(*args, **keywords)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is real

        def __hash__(cls) -> int:
            return hash(real)

    # As pickles name it: what is saved here is read elsewhere, and the other way round.
    return Meta(
        real.__name__, (), {"__module__": "torch", "__qualname__": real.__name__, "__doc__": real.__doc__}
    )


def _device(*args: Any, **keywords: Any) -> torch.device:
    kind = args[0] if args else keywords.get("type", keywords.get("device"))
    here = device_on_cpu(kind)
    if here is kind or here == kind:
        return DEVICE(*args, **keywords)
    DEVICE(
        "cuda", *args[1:], **({"index": keywords["index"]} if "index" in keywords else {})
    )  # else as torch says
    return DEVICE("cpu")


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    """torch.load or torch.jit.load with every kind of map_location; without one, to the CPU."""

    @functools.wraps(load)
    def here(file: Any, map_location: Any = None, *args: Any, **keywords: Any) -> Any:
        return load(file, _map_location(map_location), *args, **keywords)

    return here


def _map_location(given: Any) -> Any:
    if given is None:
        return "cpu"
    if isinstance(given, Mapping):
        return _restorer(lambda storage, place: on_cpu(given.get(place, place)))
    if callable(given) and not isinstance(given, (str, DEVICE)):
        return _restorer(given)
    return device_on_cpu(given)


def _restorer(choose: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """A map_location for torch, of one that may answer with a storage, a device's name, or None: the saved place."""

    def restore(storage: Any, place: str) -> Any:
        chosen = choose(storage, place)
        chosen = on_cpu(place if chosen is None else chosen)
        if not isinstance(chosen, str):
            return chosen
        return storage if chosen == "cpu" else torch.serialization.default_restore_location(storage, chosen)

    return restore


def _autocast(initialise: Callable[..., None]) -> Callable[..., None]:
    """The initialiser of torch.autocast: the precision of "cuda", on the CPU."""

    @functools.wraps(initialise)
    def here(self: Any, device_type: str, dtype: Any = None, *args: Any, **keywords: Any) -> None:
        if on_cpu(device_type) != device_type and dtype is None:
            dtype = torch.float16  # that of CUDA; the CPU's is bfloat16
        initialise(self, on_cpu(device_type), dtype, *args, **keywords)

    return here


def _custom_function(decorate: Callable[..., Any]) -> Callable[..., Any]:
    """torch.amp.custom_fwd and custom_bwd, also as torch.cuda.amp has them: without a device_type."""

    @functools.wraps(decorate)
    def here(*function: Any, device_type: str = "cuda", **keywords: Any) -> Any:
        return decorate(*function, device_type=on_cpu(device_type), **keywords)

    return here


def _device_module(find: Callable[..., Any]) -> Callable[..., Any]:
    """torch.get_device_module: that of "cuda" is torch.cuda, which covers what there is and refuses the rest."""

    @functools.wraps(find)
    def here(device: Any = None) -> Any:
        return find(device) if device is None or device_on_cpu(device) == device else torch.cuda

    return here


def device_patches() -> Iterator[Patch]:
    """Everything that takes a device, tensors and modules included."""
    yield torch, "device", _stand_in(DEVICE, _device)
    yield torch, "Generator", _stand_in(GENERATOR, reading_devices(GENERATOR, 0))
    yield torch, "get_device_module", _device_module(torch.get_device_module)
    for path, position in (*((name, None) for name in FACTORIES), *((name, 0) for name in BY_POSITION)):
        owner: Any = torch
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        if hasattr(owner, name):
            yield owner, name, reading_devices(getattr(owner, name), position)
    for name in METHODS:
        yield torch.Tensor, name, reading_devices(getattr(torch.Tensor, name))
    for kind in (torch.Tensor, nn.Module, nn.utils.rnn.PackedSequence):
        yield kind, "to", reading_devices(kind.to, 1)
        yield kind, "cuda", _itself()
    yield nn.Module, "to_empty", reading_devices(nn.Module.to_empty)
    for storage in (torch.UntypedStorage, torch.TypedStorage):
        yield storage, "cuda", _itself()
        yield storage, "pin_memory", _itself()
    yield torch.Tensor, "pin_memory", _itself()
    yield nn.utils.rnn.PackedSequence, "pin_memory", _itself()
    yield torch, "load", _load(torch.load)
    yield torch.jit, "load", _load(torch.jit.load)
    yield from _precision_patches()


def _precision_patches() -> Iterator[Patch]:
    """Mixed precision: that of "cuda" is computed on the CPU."""
    enabled = torch.is_autocast_enabled
    yield torch, "is_autocast_enabled", lambda device_type="cuda": enabled(on_cpu(device_type))
    yield torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("cpu")
    yield torch.amp.autocast, "__init__", _autocast(torch.amp.autocast.__init__)
    yield torch.amp.GradScaler, "__init__", reading_devices(torch.amp.GradScaler.__init__)
    for name in ("custom_fwd", "custom_bwd"):
        mixed = _custom_function(getattr(torch.amp, name))
        yield torch.amp, name, mixed
        yield torch.cuda.amp, name, mixed
