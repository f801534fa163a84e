"""Derivatives in every mode: forward mode, the transforms of torch.func, vmap. A wrong zero is the worst of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made import NATIVE, device_of, layer, native_in_turn, normal, product
from torch import Tensor
from torch.autograd import forward_ad

import pft_bench
from pft_bench.backends import get

PRODUCTS = ("sddmm", "spmm", "spmm_transpose")
STEPS: dict[str, dict[str, Any]] = {
    "dense": {"topk": 16, "patterns": 2},
    "dense, selects": {"topk": 5, "bias": True},
    "sparse, selects": {"candidates": 9, "topk": 4},
    "sparse": {"candidates": 9, "topk": 9},
}
pytestmark = pytest.mark.usefixtures("one_thread")
Function = Callable[..., Tensor]


def product_of(op: str, backend: str) -> tuple[Function, Tensor, Tensor]:
    """A product as a function of its two factors, and these."""
    left, right, places = (t.to(device_of(backend)) for t in product(op, 2, 5, 9, 13, 4).values())
    extra = (9,) if op == "spmm_transpose" else ()
    return lambda x, y: getattr(pft_bench, op)(x, y, places, *extra, backend=backend), left, right


def layer_of(step: dict[str, Any], backend: str) -> tuple[Function, tuple[Tensor, ...]]:
    """A layer as a function of its floating-point tensors: all its floating-point results side by side."""
    made = layer(**step, device=device_of(backend))
    names = [name for name, t in made.tensors().items() if t.is_floating_point()]

    def call(*tensors: Tensor) -> Tensor:
        given = made.with_tensors(**dict(zip(names, tensors, strict=True)))
        if get(backend).composite:
            out, _, logits, _ = get(backend).attention_forward(given)
        else:
            out, _, logits, _ = torch.ops.pft_bench.progressive_attention(*given.arguments(), backend)
        return torch.cat([x.flatten() for x in (out, logits)])

    return call, tuple(made.tensors()[name] for name in names)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


# -- forward mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_products_tangent_follows_the_product_rule(backend: str, op: str) -> None:
    call, x, y = product_of(op, backend)
    dx, dy = normal(*x.shape, seed=1).to(x.device), normal(*y.shape, seed=2).to(y.device)
    out, tangent = torch.func.jvp(call, (x, y), (dx, dy))
    torch.testing.assert_close(out, call(x, y))
    torch.testing.assert_close(tangent, call(dx, y) + call(x, dy))
    _, of_one = torch.func.jvp(lambda z: call(z, y), (x,), (dx,))
    torch.testing.assert_close(of_one, call(dx, y))


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_dual_numbers_keep_their_tangents(backend: str, op: str) -> None:
    """PyTorch's own forward mode, which no transform of torch.func sees, and the op without its Python function."""
    call, x, y = product_of(op, backend)
    dx = normal(*x.shape, seed=1).to(x.device)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(call(forward_ad.make_dual(x, dx), y)).tangent
    torch.testing.assert_close(found, call(dx, y))


@pytest.mark.parametrize(("backend", "step"), native_in_turn(STEPS))
def test_a_layers_tangent_is_that_of_the_specification(backend: str, step: dict[str, Any]) -> None:
    call, tensors = layer_of(step, backend)
    specified, _ = layer_of(step, "reference")
    tangents = tuple(normal(*t.shape, seed=3 + i).to(t.device) for i, t in enumerate(tensors))
    out, found = torch.func.jvp(call, tensors, tangents)
    wanted_out, wanted = torch.func.jvp(
        specified, tuple(t.cpu() for t in tensors), tuple(t.cpu() for t in tangents)
    )
    close(out.cpu(), wanted_out)
    close(found.cpu(), wanted)
    for i in range(len(tensors)):  # each argument alone: none may be left out

        def of_one(z: Tensor, i: int = i, call: Function = call) -> Tensor:
            return call(*tensors[:i], z, *tensors[i + 1 :])

        _, alone = torch.func.jvp(of_one, (tensors[i],), (tangents[i],))
        assert alone.abs().max() > 0
        (back,) = torch.func.vjp(of_one, tensors[i])[1](torch.ones_like(alone))
        torch.testing.assert_close(alone.sum(), (back * tangents[i]).sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("backend", NATIVE)
def test_jacobians_agree_forward_and_back(backend: str) -> None:
    for op in PRODUCTS:
        call, x, y = product_of(op, backend)
        torch.testing.assert_close(torch.func.jacfwd(call)(x, y), torch.func.jacrev(call)(x, y))
    call, (q, *rest) = layer_of(STEPS["sparse, selects"], backend)

    def scaled(factors: Tensor) -> Tensor:
        return call(q * factors, *rest)

    factors = torch.ones(q.shape[-1], device=q.device)
    forward = torch.func.jacfwd(scaled)(factors)
    back = torch.func.vjp(scaled, factors)[1](forward[:, 0].contiguous())[0]
    torch.testing.assert_close(forward.T @ forward[:, 0], back, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", NATIVE)
def test_second_derivatives_of_the_products_in_all_orders(backend: str) -> None:
    call, x, y = product_of("sddmm", backend)
    vector = normal(*x.shape, seed=1).to(x.device)

    def loss(z: Tensor) -> Tensor:
        return call(z, y).pow(3).sum()

    def backward_of_backward(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z, create_graph=True)
        (found,) = torch.autograd.grad((grad * vector).sum(), z)
        return found

    wanted = backward_of_backward(x)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (x,), (vector,))[1], wanted)
    torch.testing.assert_close(torch.func.grad(lambda z: torch.func.jvp(loss, (z,), (vector,))[1])(x), wanted)
    torch.testing.assert_close(
        torch.func.grad(lambda z: (torch.func.grad(loss)(z) * vector).sum())(x), wanted
    )


@pytest.mark.parametrize("backend", NATIVE)
def test_second_derivatives_of_a_layer_are_refused_in_every_mode(backend: str) -> None:
    call, (q, *rest) = layer_of(STEPS["dense"], backend)

    def loss(z: Tensor) -> Tensor:
        return call(z, *rest).square().sum()

    for second in (
        lambda: torch.func.grad(lambda z: torch.func.grad(loss)(z).sum())(q),
        lambda: torch.func.jvp(torch.func.grad(loss), (q,), (q,)),
    ):
        with pytest.raises(NotImplementedError, match="has no second derivative on backend"):
            second()


def test_an_op_for_inference_refuses_forward_mode() -> None:
    x, weight = normal(1, 4, 4, 3), normal(3, 1, 3, 3)

    def call(z: Tensor) -> Tensor:
        return pft_bench.ops.depthwise_gelu_add(z, weight, None, x, 0, backend="cpu")

    with pytest.raises(NotImplementedError, match="depthwise_gelu_add has no gradient"):
        torch.func.jvp(call, (x,), (x,))


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_torch_func_grad_is_autograds(backend: str, op: str) -> None:
    call, x, y = product_of(op, backend)
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    wanted = torch.autograd.grad(call(*leaves).pow(3).sum(), leaves)
    got = torch.func.grad(lambda a, b: call(a, b).pow(3).sum(), argnums=(0, 1))(x, y)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("backend", "step"), native_in_turn(STEPS, 1))
def test_per_sample_gradients_are_those_of_each_sample(backend: str, step: dict[str, Any]) -> None:
    """vmap of grad, with arguments that the samples share (the bias table above all) and arguments of their own."""
    call, tensors = layer_of(step, backend)
    batch = torch.stack((tensors[0], 2 * tensors[0], -tensors[0]))

    def loss(*tensors: Tensor) -> Tensor:
        out = call(*tensors)
        return (out * torch.linspace(-1, 1, out.numel(), device=out.device)).sum()

    every = tuple(range(len(tensors)))
    got = torch.func.vmap(torch.func.grad(loss, argnums=every), in_dims=(0, *(None for _ in every[1:])))(
        batch, *tensors[1:]
    )
    for i, sample in enumerate(batch):
        for found, wanted in zip(
            got, torch.func.grad(loss, argnums=every)(sample, *tensors[1:]), strict=True
        ):
            close(found[i], wanted)


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_vmap_is_one_call_after_the_other(backend: str, op: str) -> None:
    """Any argument batched, along any dimension, the index too; and twice."""
    left, right, places = (t.to(device_of(backend)) for t in product(op, 2, 5, 9, 13, 4).values())
    extra = (9,) if op == "spmm_transpose" else ()

    def call(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return getattr(pft_bench, op)(x, y, index, *extra, backend=backend)

    lefts, rights = torch.stack((left, 2 * left, -left), -1), torch.stack((right, right + 1, -right))
    indices = torch.stack((places, places.flip(-1), places.roll(1, 1)), 1)
    for in_dims in ((-1, None, None), (None, 0, None), (None, None, 1), (-1, 0, 1)):
        arguments = [
            many if dim is not None else one
            for dim, many, one in zip(in_dims, (lefts, rights, indices), (left, right, places), strict=True)
        ]
        got = torch.func.vmap(call, in_dims=in_dims)(*arguments)
        for i in range(3):
            one = [x if d is None else x.select(d, i) for x, d in zip(arguments, in_dims, strict=True)]
            torch.testing.assert_close(got[i], call(*one))
    nested = torch.func.vmap(torch.func.vmap(call, in_dims=(None, 0, None)), in_dims=(-1, None, None))
    torch.testing.assert_close(nested(lefts, rights, places)[1, 2], call(2 * left, -right, places))


@pytest.mark.parametrize("backend", NATIVE)
def test_vmap_of_a_layer_is_one_call_after_the_other(backend: str) -> None:
    """A bias table of their own, and regions of their own, for which there is no way but one by one."""
    made = layer(topk=16, patterns=2, device=device_of(backend))
    assert made.bias is not None
    assert made.region is not None
    biases = torch.stack((made.bias, -made.bias))
    regions = torch.stack((made.region, made.region.flip(0)))

    def call(q: Tensor, bias: Tensor, region: Tensor) -> Tensor:
        return pft_bench.progressive_attention(
            q, made.k, made.v, topk=16, bias=bias, region=region, backend=backend
        )[0]

    got = torch.func.vmap(call, in_dims=(None, 0, None))(made.q, biases, made.region)
    torch.testing.assert_close(got, torch.stack([call(made.q, b, made.region) for b in biases]))
    got = torch.func.vmap(call, in_dims=(None, None, 0))(made.q, made.bias, regions)
    torch.testing.assert_close(got, torch.stack([call(made.q, made.bias, r) for r in regions]))


@pytest.mark.parametrize("backend", NATIVE)
def test_a_wrong_index_is_found_inside_vmap(backend: str) -> None:
    q, k, places = (t.to(device_of(backend)) for t in product("sddmm", 2, 5, 9, 13, 4).values())
    indices = torch.stack((places, places))
    indices[1, 0, 0, 0] = 9
    with pytest.raises(ValueError, match=r"index must hold distinct keys in 0..8, got 9"):
        torch.func.vmap(lambda index: pft_bench.sddmm(q, k, index, backend=backend))(indices)
