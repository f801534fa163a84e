"""The steps that look whether it is right: what was built, small and full correctness, equal bits in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from ...backends import Backend, backends, get
from ...harness.check import CheckResult, check_layer, check_product, failures
from ...harness.inputs import layer, product
from ...harness.measure.environment import environment
from ...reference import Layer
from .running import Item, ItemResult, Session

RUNS = 10


@dataclass(frozen=True)
class Sizes:
    """Windows of `side` x `side` tokens, layers of `listed` candidates that keep `kept`, batches of `batch`."""

    side: int
    dim: int
    listed: int
    kept: int
    batch: int
    product_dims: tuple[int, ...]
    product_kept: tuple[int, ...]
    windows: int = 2
    heads: int = 2
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.float32, torch.bfloat16)

    @property
    def tokens(self) -> int:
        """Of a window."""
        return self.side**2


SMALL = Sizes(5, 13, 9, 4, 2, (13, 40), (1, 9, 25))
FULL = Sizes(32, 40, 256, 128, 3, (40, 20, 13), (256, 16, 1))
SANITIZED = replace(SMALL, product_dims=(13,), product_kept=(9,))
# In the emulator, which needs seconds for what a GPU does in a millisecond; `pytest tests/kernels` has more of it.
SMALL_REHEARSED = Sizes(4, 8, 5, 3, 1, (8,), (3,), windows=1, dtypes=(torch.float16, torch.float32))
FULL_REHEARSED = replace(SMALL_REHEARSED, side=6, dtypes=(torch.float16,))


def unavailable(name: str) -> str | None:
    """Why a backend cannot run here; None where it can."""
    return get(name).available()


def deciding_rungs(family: str, op: str, layers: str = "any") -> list[str]:
    """The family's rungs that decide an op; of attention_forward, for `dense`, `sparse` or `any` layers."""
    known = get(family).rungs
    return [
        f"{family}-{name}"
        for name, rung in known.items()
        if op in rung.ops
        and (op != "attention_forward" or "any" in (layers, rung.layers) or layers == rung.layers)
    ]


def own(session: Session, op: str, layers: str = "any", *, rungs_too: bool = True) -> list[str]:
    """The family and its rungs that decide the op, as `deciding_rungs`; nobody where its kernels cannot run here."""
    if unavailable(session.family) is not None:
        return []
    return [session.family, *(deciding_rungs(session.family, op, layers) if rungs_too else ())]


def own_products(session: Session) -> list[str]:
    """The family and its rungs that decide any sparse product."""
    return list(dict.fromkeys([*own(session, "sddmm"), *own(session, "spmm_transpose")]))


def family_item(session: Session) -> Iterator[Item]:
    """Whether the kernels at stake can run; without them a step looks at the others alone."""
    reason = unavailable(session.family)
    wrong = () if reason is None else (reason,)
    yield Item(f"backend {session.family}", lambda: ItemResult(wrong))


# -- what was built ----------------------------------------------------------------------------------------------------


def build_items(session: Session) -> Iterator[Item]:
    """The module that was built, for which architecture; the device; which backends can run."""
    yield from family_item(session)
    if not session.rehearse and unavailable(session.family) is None:
        yield Item("built for this GPU", partial(_built, session.family))
    yield Item("machine", partial(_machine, session))


def _built(family: str) -> ItemResult:
    major, minor = torch.cuda.get_device_capability()
    info = getattr(get(family), "native")().build_info()  # noqa: B009 - no part of `Backend`
    built = info["architectures"]
    wrong = () if runs_on(built, (major, minor)) else (f"built for {built}, the GPU is {major}{minor}",)
    return ItemResult(wrong, {"architectures": built, "capability": f"{major}.{minor}"})


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs what was compiled for "80-real,90-real", ...: its major number, and no higher minor one."""
    major, minor = capability
    known = (divmod(int(name), 10) for name in architectures.replace("-real", "").split(","))
    return any(major == its_major and minor >= its_minor for its_major, its_minor in known)


def _machine(session: Session) -> ItemResult:
    found = environment()
    facts = {name: found[name] for name in ("gpu", "system", "python", "libraries")}
    facts["gpu now"] = found["now"]["gpu"]
    facts["backends"] = {row.name: row.available or row.reason for row in backends()}
    missing = not session.rehearse and found["gpu"] is None
    return ItemResult(("PyTorch sees no GPU",) if missing else (), facts)


# -- is it right? ------------------------------------------------------------------------------------------------------


class LayerCase(NamedTuple):
    """A layer that is yet to be drawn."""

    label: str
    dtype: torch.dtype
    kind: str
    """`dense` or `sparse`."""
    make: Callable[[], Layer]


def layers(sizes: Sizes, device: str) -> Iterator[LayerCase]:
    """Sparse layers and dense ones with regions, that select and that keep all, in every dtype."""
    steps = (
        (sizes.listed, sizes.listed),
        (None, sizes.listed),
        (sizes.listed, sizes.kept),
        (None, sizes.tokens),
    )
    for dtype in sizes.dtypes:
        for candidates, topk in steps:
            make = partial(
                layer, windows=sizes.windows, heads=sizes.heads, tokens=sizes.tokens, dim=sizes.dim, topk=topk,
                candidates=candidates, patterns=0 if candidates else sizes.windows, dtype=dtype, seed=topk,
                device=device,
            )  # fmt: skip
            label = f"{str(dtype)[6:]} {candidates or sizes.tokens} -> {topk}"
            yield LayerCase(label, dtype, "dense" if candidates is None else "sparse", make)


def correctness_items(sizes: Sizes, session: Session) -> Iterator[Item]:
    """Values, selection and gradients against float64: ours on every rung, then Triton's, which compile for long."""
    yield from family_item(session)
    others = session.others("triton")
    for ours in (True, False):
        for case in layers(sizes, session.device):
            names = own(session, "attention_forward", case.kind) if ours else others
            for name in able(names, case.dtype):
                yield Item(f"{name} layer {case.label}", partial(_check_layer, name, case.make))
        for dtype in sizes.dtypes:
            for dim in sizes.product_dims:
                for kept in sizes.product_kept:
                    label = f"products {str(dtype)[6:]} D {dim} K {kept}"
                    for name in able(own_products(session) if ours else others, dtype):
                        check = partial(_check_products, name, session.device, sizes, dtype, dim, kept)
                        yield Item(f"{name} {label}", check)


def able(names: Iterable[str], dtype: torch.dtype) -> list[str]:
    """Those that take tensors of this dtype."""
    return [name for name in names if dtype in get(name).dtypes]


def small_items(session: Session) -> Iterator[Item]:
    """Odd sizes that take every path in a moment."""
    return correctness_items(SMALL_REHEARSED if session.rehearse else SMALL, session)


def full_items(session: Session) -> Iterator[Item]:
    """The windows of the classical model."""
    return correctness_items(FULL_REHEARSED if session.rehearse else FULL, session)


def sanitized_items(session: Session) -> Iterator[Item]:
    """What compute-sanitizer watches: each path of our own kernels once, forward and backward, and nothing else.

    Values are looked at on the CPU, for finite ones alone: under the tool every kernel of PyTorch's would take long.
    """
    sizes = SMALL_REHEARSED if session.rehearse else SANITIZED
    yield from family_item(session)
    for case in layers(sizes, session.device):
        for name in able(own(session, "attention_forward", case.kind), case.dtype):
            yield Item(f"{name} layer {case.label}", partial(_finite_layer, name, case.make))
    for dtype in sizes.dtypes:
        for name in able(own_products(session), dtype):
            make = partial(_draw_products, session.device, sizes, dtype)
            yield Item(f"{name} products {str(dtype)[6:]}", partial(_finite_products, name, make))


def _draw_products(device: str, sizes: Sizes, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    shape = (sizes.batch, sizes.tokens, sizes.tokens, sizes.product_dims[0], sizes.product_kept[-1])
    return [
        product(op, *shape, dtype=dtype, index_dtype=torch.int16, device=device)
        for op in ("sddmm", "spmm", "spmm_transpose")
    ]


def _finite_layer(name: str, make: Callable[[], Layer]) -> ItemResult:
    return _finite(gradients(get(name), make()))


def _finite_products(name: str, make: Callable[[], list[dict[str, torch.Tensor]]]) -> ItemResult:
    backend, (one, two, three) = get(name), make()
    made = [backend.sddmm(one["q"], one["k"], one["index"]), backend.spmm(two["a"], two["v"], two["index"])]
    keys = three["x"].shape[1]
    return _finite([*made, backend.spmm_transpose(three["a"], three["x"], three["index"], keys)])


def _finite(found: list[torch.Tensor]) -> ItemResult:
    wrong = [number for number, tensor in enumerate(found) if not tensor.cpu().isfinite().all()]
    return ItemResult(tuple(f"result {number} is not finite" for number in wrong))


def _check_layer(name: str, make: Callable[[], Layer]) -> ItemResult:
    return _judged(check_layer(get(name), make(), train=True))


def _check_products(
    name: str, device: str, sizes: Sizes, dtype: torch.dtype, dim: int, kept: int
) -> ItemResult:
    results: list[CheckResult] = []
    for op in ("sddmm", "spmm"):
        shape = (sizes.batch, sizes.tokens, sizes.tokens, dim, kept)
        made = product(op, *shape, seed=kept, dtype=dtype, index_dtype=torch.int16, device=device)
        results += check_product(get(name), op, made, train=True)
    return _judged(results)


def _judged(results: list[CheckResult]) -> ItemResult:
    worst = max(result.worst for result in results)
    return ItemResult(tuple(map(str, failures(results))), {"checks": len(results), "worst": round(worst, 4)})


# -- the same bits in every run? ---------------------------------------------------------------------------------------


def determinism_items(session: Session) -> Iterator[Item]:
    """Ten runs of each layer's output and gradients, of ours and of Triton's."""
    sizes = FULL_REHEARSED if session.rehearse else FULL
    yield from family_item(session)
    for names in (own(session, "attention_forward", rungs_too=False), session.others("triton")):
        for case in layers(sizes, session.device):
            for name in able(names, case.dtype):
                yield Item(f"{name} {case.label}", partial(_same_bits, name, case.make))


def _same_bits(name: str, make: Callable[[], Layer]) -> ItemResult:
    made, backend = make(), get(name)
    first = gradients(backend, made)
    for run in range(1, RUNS):
        again = gradients(backend, made)
        if not all(torch.equal(x, y) for x, y in zip(first, again, strict=True)):
            return ItemResult((f"run {run + 1} of {RUNS} has different bits",))
    return ItemResult((), {"runs": RUNS})


def gradients(backend: Backend, made: Layer) -> list[torch.Tensor]:
    """Output and all gradients of a layer."""
    out, new_index, new_logits, lse = backend.attention_forward(made)
    handed = torch.ones_like(new_logits) if new_logits.shape[-1] else None
    grads = backend.attention_backward(made, torch.ones_like(out), handed, new_index, out, lse)
    return [out, *(g for g in grads if g is not None)]
