"""bfloat16 and float16 through the public ops on the cpu backend: as any other dtype of PyTorch."""

from __future__ import annotations

import pytest
import torch
from made import failed, index, layer, product
from torch import Tensor

import pft_bench
from pft_bench.backends import get
from pft_bench.harness.check import exact_product, within

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
OPS = pytest.mark.parametrize("op", ["sddmm", "spmm", "spmm_transpose"])


def keys_of(op: str) -> tuple[int, ...]:
    return (21,) if op == "spmm_transpose" else ()


def attend(made, **changes) -> Tensor:
    given = {"q": made.q, "k": made.k, "v": made.v, "bias": made.bias, **changes}
    first, state = pft_bench.progressive_attention(**given, topk=9)
    second, _ = pft_bench.progressive_attention(**given, topk=4, state=state)
    return first + second


@DTYPES
def test_auto_takes_cpu(dtype: torch.dtype) -> None:
    assert dtype in get("cpu").dtypes
    given = product("sddmm", 2, 9, 21, 13, 7, dtype=dtype)
    assert torch.equal(pft_bench.sddmm(**given), pft_bench.sddmm(**given, backend="cpu"))


@DTYPES
@OPS
def test_values_and_gradients(op: str, dtype: torch.dtype) -> None:
    """The gradients of a product are the other two products, each within its bound."""
    left, right, places = product(op, 2, 21, 21, 13, 7, dtype=dtype).values()
    leaves = [x.clone().requires_grad_() for x in (left, right)]
    made = getattr(pft_bench, op)(*leaves, places, *keys_of(op), backend="cpu")
    grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    grads = torch.autograd.grad(made, leaves, grad)
    assert {x.dtype for x in (made, *grads)} == {dtype}
    wanted = {
        "sddmm": [("spmm", grad, right, None), ("spmm_transpose", grad, left, 21)],
        "spmm": [("sddmm", grad, right, None), ("spmm_transpose", left, grad, 21)],
        "spmm_transpose": [("sddmm", right, grad, None), ("spmm", left, grad, None)],
    }[op]
    for got, (name, one, other, keys) in zip(grads, wanted, strict=True):
        assert not failed([within(f"{op}: {name}", got, *exact_product(name, one, other, places, keys))])


@DTYPES
@OPS
def test_an_index_and_compiled_code_give_the_same_bits(op: str, dtype: torch.dtype) -> None:
    left, right, places = product(op, 2, 21, 21, 13, 7, dtype=dtype).values()
    call = getattr(pft_bench, op)
    wanted = call(left, right, places, *keys_of(op), backend="cpu")
    checked = pft_bench.Index(places, 21)
    assert torch.equal(call(left, right, checked, *keys_of(op), backend="cpu"), wanted)
    compiled = torch.compile(
        lambda a, b: call(a, b, places, *keys_of(op), backend="cpu"), backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(left, right), wanted)


@DTYPES
def test_attention_of_any_strides_compiled_and_with_gradients(dtype: torch.dtype) -> None:
    made = layer(dtype=dtype)
    wanted = attend(made)
    assert wanted.dtype == dtype
    every_other = {
        name: torch.stack((x, x), -1).flatten(-2)[..., ::2] for name, x in (("q", made.q), ("v", made.v))
    }
    assert torch.equal(attend(made, **every_other), wanted)
    assert torch.equal(torch.compile(lambda: attend(made), backend="eager", fullgraph=True)(), wanted)
    grads = []
    for backend in ("cpu", "reference"):
        leaves = {n: getattr(made, n).detach().clone().requires_grad_() for n in ("q", "k", "v", "bias")}
        attend(made, **leaves, backend=backend).float().square().sum().backward()
        grads.append([x.grad for x in leaves.values()])
    for got, other in zip(*grads, strict=True):
        assert got is not None
        assert other is not None
        assert got.dtype == other.dtype
        torch.testing.assert_close(
            got.float(), other.float(), rtol=0.05, atol=0.05 * float(other.abs().max())
        )


def test_autocast_computes_a_layer_of_float32_in_float32() -> None:
    made = layer()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(made)
    assert torch.equal(out, attend(made))


@DTYPES
def test_what_differs_in_dtype_is_refused(dtype: torch.dtype) -> None:
    q, k, places = product("sddmm", 2, 9, 21, 13, 7, dtype=dtype).values()
    with pytest.raises(TypeError, match=f"k must be {dtype} like q"):
        pft_bench.sddmm(q, k.float(), places)
    with pytest.raises(TypeError, match=r"backend .cpu. takes .*torch.float64"):
        pft_bench.sddmm(q.double(), k.double(), places, backend="cpu")
    assert pft_bench.sddmm(q, k, index(2, 9, 21, 0)).shape == (2, 9, 0)
