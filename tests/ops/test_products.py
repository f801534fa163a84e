"""sddmm, spmm and spmm_transpose of every backend against masked dense products in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import BACKENDS, COMPOSITE, NATIVE, device_of, failed, index, normal, product
from torch import Tensor

import pft_bench
from pft_bench.backends import get, poisoned
from pft_bench.harness.check import check_product, exact_product, within

pytestmark = pytest.mark.usefixtures("one_thread")

OPS = ("sddmm", "spmm", "spmm_transpose")

# batch, queries, keys, head_dim, kept
SHAPES = {
    "multiples of everything": (2, 16, 32, 16, 16),
    "K not a multiple of 16": (2, 7, 40, 16, 21),
    "K one above a vector": (1, 5, 40, 8, 17),
    "head_dim 13: a tail in every vector width": (2, 9, 12, 13, 5),
    "head_dim 20 of light, 40 of classical": (1, 9, 12, 40, 5),
    "head_dim larger than any register block": (1, 3, 12, 200, 5),
    "D = 1": (2, 9, 12, 1, 5),
    "N = 1": (2, 1, 12, 13, 5),
    "M = 1": (2, 9, 1, 13, 1),
    "K = 1": (2, 9, 12, 13, 1),
    "K = M": (2, 9, 12, 13, 12),
    "more queries than keys": (2, 23, 6, 13, 5),
    "more keys than queries": (2, 3, 70, 13, 5),
    "no window-heads": (0, 9, 12, 13, 5),
    "no queries": (2, 0, 12, 13, 5),
    "nothing kept": (2, 9, 12, 13, 0),
    "keys beyond int16": (1, 2, 40000, 3, 4),
}


def call(op: str, backend: str, inputs: dict[str, Tensor], keys: int) -> Tensor:
    device = device_of(backend)
    moved = [tensor.to(device) for tensor in inputs.values()]
    extra = (keys,) if op == "spmm_transpose" else ()
    return getattr(pft_bench, op)(*moved, *extra, backend=backend)


def assert_exact(op: str, backend: str, inputs: dict[str, Tensor], keys: int) -> Tensor:
    """The op, on poisoned outputs, within the bound of its float64 value."""
    left, right, places = inputs.values()
    exact, bound = exact_product(op, left, right, places, keys if op == "spmm_transpose" else None)
    with poisoned():
        got = call(op, backend, inputs, keys).cpu()
    assert got.dtype == left.dtype
    assert not failed([within(f"{op} {backend}", got, exact, bound)])
    return got


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shape(backend: str, op: str, shape: tuple[int, int, int, int, int]) -> None:
    batch, queries, keys, dim, kept = shape
    inputs = product(op, batch, queries, keys, dim, kept)
    got = assert_exact(op, backend, inputs, keys)
    sizes = {"sddmm": (queries, kept), "spmm": (queries, dim), "spmm_transpose": (keys, dim)}
    assert got.shape == (batch, *sizes[op])


@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_index_dtype(backend: str, op: str, index_dtype: torch.dtype) -> None:
    assert_exact(op, backend, product(op, 2, 5, 19, 13, 7, index_dtype=index_dtype), 19)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["sddmm", "spmm"])
def test_raw_kernels_pass_their_check(backend: str, op: str) -> None:
    inputs = {k: t.to(device_of(backend)) for k, t in product(op, 2, 9, 21, 13, 7).items()}
    assert not failed(check_product(get(backend), op, inputs, train=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", COMPOSITE)
def test_other_dtypes_of_plain_pytorch(backend: str, op: str, dtype: torch.dtype) -> None:
    assert_exact(op, backend, product(op, 2, 9, 21, 13, 7, dtype=dtype), 21)


def strided(kind: str, shape: tuple[int, int, int]) -> Tensor:
    """A [B, R, D] tensor with the memory layout `kind`."""
    batch, rows, dim = shape
    if kind == "projection":  # q of a [B, R, 3, D] projection
        return normal(batch, rows, 3, dim)[:, :, 1]
    if kind == "transposed last dimension":
        return normal(batch, dim, rows).mT
    if kind == "expanded rows":
        return normal(batch, 1, dim).expand(batch, rows, dim)
    if kind == "expanded batch":
        return normal(1, rows, dim).expand(batch, rows, dim)
    if kind == "expanded last dimension":
        return normal(batch, rows, 1).expand(batch, rows, dim)
    if kind == "every second channel":
        return normal(batch, rows, 2 * dim)[..., ::2]
    if kind == "offset by one float":  # unaligned for any vector load
        return normal(batch, rows, dim + 1)[..., 1:]
    assert kind == "batch innermost"
    return normal(rows, dim, batch).permute(2, 0, 1)


LAYOUTS = (
    "projection",
    "transposed last dimension",
    "expanded rows",
    "expanded batch",
    "expanded last dimension",
    "every second channel",
    "offset by one float",
    "batch innermost",
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: str, op: str, layout: str) -> None:
    inputs = product(op, 2, 9, 21, 13, 7)
    for name in [name for name in inputs if name != "index"]:
        inputs[name] = strided(layout, tuple(inputs[name].shape))
    places = inputs["index"]
    inputs["index"] = torch.cat((places, places), -1)[..., :7]  # rows that do not lie side by side
    assert_exact(op, backend, inputs, 21)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_follow_the_order_of_an_unsorted_index(backend: str, op: str) -> None:
    inputs = product(op, 2, 9, 21, 13, 7)
    backwards = {name: t.flip(-1) if t.shape[-1] == 7 else t for name, t in inputs.items()}
    got, flipped = call(op, backend, inputs, 21), call(op, backend, backwards, 21)
    torch.testing.assert_close(flipped.flip(-1) if op == "sddmm" else flipped, got)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_shape_layout_and_index_dtype(backend: str, op: str, data: st.DataObject) -> None:
    batch, queries, keys, dim = (data.draw(st.integers(low, 20)) for low in (0, 0, 1, 1))
    kept = data.draw(st.integers(0, keys))
    index_dtype = data.draw(st.sampled_from([torch.int16, torch.int32, torch.int64]))
    inputs = product(op, batch, queries, keys, dim, kept, index_dtype=index_dtype)
    for name in [name for name in inputs if name != "index"]:
        layout = data.draw(st.sampled_from(LAYOUTS))
        inputs[name] = strided(layout, tuple(inputs[name].shape))
    assert_exact(op, backend, inputs, keys)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_stay_in_their_row(backend: str, op: str) -> None:
    """A NaN or infinity reaches what depends on it and nothing else (a masked product would spread it)."""
    if backend == "dense" and op != "sddmm":
        pytest.skip("the dense map multiplies what it masked with zero: 0 * inf is NaN")
    inputs = product(op, 2, 9, 21, 13, 7)
    name = next(iter(inputs))
    clean = call(op, backend, inputs, 21).cpu()
    inputs[name] = inputs[name].clone()
    inputs[name][1, 4, :] = float("inf")
    got = call(op, backend, inputs, 21).cpu()
    if op == "spmm_transpose":
        touched = torch.zeros(2, 21, dtype=torch.bool)
        touched[1, inputs["index"][1, 4].long()] = True
    else:
        touched = torch.zeros(2, 9, dtype=torch.bool)
        touched[1, 4] = True
    assert bool(got[~touched].isfinite().all())
    assert not bool(got[touched].isfinite().any())
    torch.testing.assert_close(got[~touched], clean[~touched], rtol=0, atol=0)


# -- gradients ---------------------------------------------------------------------------------------------------------


def function(op: str, backend: str, keys: int) -> Callable[..., Tensor]:
    extra = (keys,) if op == "spmm_transpose" else ()
    return lambda left, right, places: getattr(pft_bench, op)(left, right, places, *extra, backend=backend)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", COMPOSITE)
def test_first_and_second_derivatives_in_float64(backend: str, op: str) -> None:
    left, right, places = product(op, 2, 3, 5, 2, 3, dtype=torch.float64).values()
    left.requires_grad_()
    right.requires_grad_()
    call_ = function(op, backend, 5)
    assert torch.autograd.gradcheck(call_, (left, right, places))
    assert torch.autograd.gradgradcheck(call_, (left, right, places))


def gradients(
    op: str,
    backend: str,
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    needs: tuple[bool, bool] = (True, True),
) -> list[Tensor | None]:
    """Output, gradients and gradients of a function of the gradients, for a fixed weighting of the output."""
    device = device_of(backend)
    left, right, places = (
        t.to(device) if t.dtype == torch.int32 else t.to(device, dtype) for t in inputs.values()
    )
    left.requires_grad_(needs[0])
    right.requires_grad_(needs[1])
    out = function(op, backend, 21)(left, right, places)
    weight = normal(*out.shape, seed=9).to(device, dtype).requires_grad_()
    leaves = [leaf for leaf in (left, right) if leaf.requires_grad]
    first = torch.autograd.grad((out * weight).sum(), leaves, create_graph=True)
    found = [out, *first]
    if all(needs):
        penalty = sum((grad * grad).sum() for grad in first)
        found += torch.autograd.grad(penalty, [left, right, weight])
    return [tensor.detach().cpu().double() for tensor in found]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dim", [1, 13, 40])
def test_native_first_and_second_derivatives_equal_the_references(backend: str, op: str, dim: int) -> None:
    inputs = product(op, 2, 9, 21, dim, 7)
    with poisoned():
        found = gradients(op, backend, inputs, torch.float32)
    for got, exact in zip(found, gradients(op, "reference", inputs, torch.float64), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["left only", "right only"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_gradient_that_nobody_wants_is_left_out(backend: str, op: str, needs: tuple[bool, bool]) -> None:
    inputs = product(op, 2, 9, 21, 13, 7)
    _, got = gradients(op, backend, inputs, torch.float32, needs)
    _, *exact = gradients(op, "reference", inputs, torch.float64)[:3]
    torch.testing.assert_close(got, exact[needs.index(True)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_through_strided_and_expanded_inputs(backend: str) -> None:
    device = device_of(backend)
    base = normal(1, 5, 2, 13).to(device).requires_grad_()
    q, k = base.expand(3, -1, -1, -1).unbind(2)
    places = index(3, 5, 5, 2).to(device)
    pft_bench.sddmm(q, k, places, backend=backend).sum().backward()
    twin = base.detach().double().requires_grad_()
    q, k = twin.expand(3, -1, -1, -1).unbind(2)
    (q @ k.mT).gather(-1, places.long()).sum().backward()
    torch.testing.assert_close(base.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_written_to(backend: str, op: str) -> None:
    inputs = product(op, 2, 9, 21, 13, 7, index_dtype=torch.int16)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    call(op, backend, inputs, 21)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_the_index_of_a_backward_is_the_one_of_its_forward() -> None:
    """Changing the caller's index after the call must not change the gradient."""
    inputs = product("sddmm", 1, 4, 9, 5, 3, index_dtype=torch.int16)
    q, k, places = inputs["q"].requires_grad_(), inputs["k"], inputs["index"]
    out = pft_bench.sddmm(q, k, places)
    expected = torch.einsum("bnkd->bnd", k[0][places.long()[0]].unsqueeze(0))
    places.copy_(index(1, 4, 9, 3, seed=5, dtype=torch.int16))
    out.sum().backward()
    torch.testing.assert_close(q.grad, expected)
