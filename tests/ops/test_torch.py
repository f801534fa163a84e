"""The ops inside PyTorch: opcheck, compile, fake and meta tensors, FLOP counts, function transforms, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from made import BACKENDS, COMPOSITE, NATIVE, device_of, index, layer, native_in_turn, normal, product
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import pft_bench
from pft_bench.backends import get
from pft_bench.harness.check import Layer

PRODUCTS = ("sddmm", "spmm", "spmm_transpose")
STEPS: dict[str, dict[str, Any]] = {
    "dense": {"topk": 16, "patterns": 2},
    "dense, selects": {"topk": 5},
    "sparse, selects": {"candidates": 9, "topk": 4},
    "sparse": {"candidates": 9, "topk": 9, "bias": False},
}
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def raw_arguments(op: str, backend: str) -> tuple[Any, ...]:
    inputs = product(op, 2, 5, 9, 13, 4).values()
    left, right, places = (tensor.to(device_of(backend)) for tensor in inputs)
    extra = (9,) if op == "spmm_transpose" else ()
    return left.requires_grad_(), right.requires_grad_(), places, *extra, backend


def layer_arguments(made: Layer, backend: str) -> tuple[Any, ...]:
    leaves = [
        a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in made.arguments()
    ]
    return *leaves, backend


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_opcheck_of_the_products(backend: str, op: str) -> None:
    torch.library.opcheck(
        getattr(torch.ops.pft_bench, op).default, raw_arguments(op, backend), test_utils=OPCHECKS
    )


@pytest.mark.parametrize(("backend", "step"), native_in_turn(STEPS))
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_opcheck_of_a_layer(backend: str, step: dict[str, Any]) -> None:
    made = layer(**step, device=device_of(backend))
    torch.library.opcheck(
        torch.ops.pft_bench.progressive_attention.default, layer_arguments(made, backend), test_utils=OPCHECKS
    )


@pytest.mark.parametrize(("backend", "step"), native_in_turn(STEPS, 1))
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_opcheck_of_a_layers_backward(backend: str, step: dict[str, Any]) -> None:
    made = layer(**step, device=device_of(backend))
    out, kept, logits, lse = get(backend).attention_forward(made)
    grad_logits = torch.ones_like(logits) if logits.numel() else None
    torch.library.opcheck(
        torch.ops.pft_bench.progressive_attention_backward.default,
        (torch.ones_like(out), grad_logits, kept, out, lse, *made.arguments(), backend),
        test_utils=OPCHECKS,
    )


@pytest.mark.usefixtures("fresh_compiler")
def test_opcheck_of_the_index_check() -> None:
    torch.library.opcheck(
        torch.ops.pft_bench.checked_index.default, (index(2, 5, 9, 4), 9), test_utils=OPCHECKS
    )


def two_layers(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A function of two layers of a chain and a product, with its arguments."""
    device = device_of(backend)
    made = layer(device=device)
    places = index(6, 16, 16, 4).to(device)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out, state = pft_bench.progressive_attention(q, k, v, topk=9, bias=bias, backend=backend)
        out, _ = pft_bench.progressive_attention(out, k, v, topk=4, state=state, bias=bias, backend=backend)
        flat = out.flatten(0, 1)
        weights = pft_bench.sddmm(flat, k.flatten(0, 1), places, backend=backend).softmax(-1)
        return pft_bench.spmm(weights, v.flatten(0, 1), places, backend=backend)

    return call, [t.detach().clone().requires_grad_() for t in (made.q, made.k, made.v, made.bias)]


@pytest.mark.parametrize("backend", [*NATIVE, "dense"])
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_compile_without_a_graph_break(backend: str) -> None:
    call, leaves = two_layers(backend)
    expected = call(*leaves)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    out = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(out, expected)
    for got, grad in zip(torch.autograd.grad(out.square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(got, grad)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_compile_with_sizes_that_change(backend: str) -> None:
    device = device_of(backend)
    compiled = torch.compile(
        lambda q, k, places: pft_bench.sddmm(q, k, places, backend=backend),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for queries, keys, dim, kept in ((5, 9, 13, 4), (6, 11, 7, 3), (23, 70, 40, 33)):
        inputs = [t.to(device) for t in product("sddmm", 2, queries, keys, dim, kept).values()]
        torch.testing.assert_close(compiled(*inputs), pft_bench.sddmm(*inputs, backend=backend))


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread", "fresh_compiler")
def test_a_compiled_call_still_finds_a_wrong_index(backend: str) -> None:
    compiled = torch.compile(
        lambda q, k, places: pft_bench.sddmm(q, k, places, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    q, k, places = (t.to(device_of(backend)) for t in product("sddmm", 2, 5, 9, 13, 4).values())
    compiled(q, k, places)
    places[1, 4, 3] = 9
    with pytest.raises(ValueError, match=r"got 9 at \[1, 4, 3\]"):
        compiled(q, k, places)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors_have_the_real_shapes_dtypes_and_strides(backend: str, step: dict[str, Any]) -> None:
    made = layer(**step, device=device_of(backend))
    state = None
    if made.index is not None:
        state = pft_bench.ChainState.sparse(made.index, made.logits, 16)

    def call(made: Layer, state: pft_bench.ChainState | None) -> tuple[Tensor | None, ...]:
        out, after = pft_bench.progressive_attention(
            made.q,
            made.k,
            made.v,
            topk=made.topk,
            bias=made.bias,
            region=made.region,
            state=state,
            backend=backend,
        )
        return out, after.index, after.logits

    real = call(made, state)
    with FakeTensorMode() as mode:
        fake = made.map(mode.from_tensor)
        before = None
        if fake.index is not None:
            before = pft_bench.ChainState(index=fake.index, logits=fake.logits, num_keys=16)
        found = call(fake, before)
    for got, wanted in zip(found, real, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
            assert got.stride() == wanted.stride()


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_meta_tensors_give_shapes_without_a_kernel(backend: str, op: str) -> None:
    real = raw_arguments(op, backend)
    meta = [a.detach().to("meta") if isinstance(a, Tensor) else a for a in real]
    call = getattr(torch.ops.pft_bench, op)
    wanted, got = call(*real), call(*meta)
    assert got.device.type == "meta"
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", NATIVE)
def test_flop_counter_counts_two_per_multiply_add_of_the_products(backend: str, op: str) -> None:
    *inputs, name = raw_arguments(op, backend)
    once = 2 * 2 * 5 * 4 * 13
    with FlopCounterMode(display=False) as counter:
        out = getattr(pft_bench, op)(*inputs, backend=name)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * once


@pytest.mark.parametrize(
    ("step", "forward", "backward"),
    [
        ({"topk": 16}, 16 + 16, 3 * 16 + 2 * 16),
        ({"topk": 5}, 16 + 5, 3 * 16 + 2 * 5),
        ({"candidates": 9, "topk": 4}, 9 + 4, 3 * 9 + 2 * 4),
        ({"candidates": 9, "topk": 99}, 9 + 9, 3 * 9 + 2 * 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", NATIVE)
def test_flop_counter_of_a_layer(backend: str, step: dict[str, Any], forward: int, backward: int) -> None:
    made = layer(**step, device=device_of(backend))
    state = None
    if made.index is not None:
        state = pft_bench.ChainState.sparse(made.index, made.logits, 16)
    q = made.q.clone().requires_grad_()
    entry = 2 * 2 * 3 * 16 * 13
    with FlopCounterMode(display=False) as counter:
        out, _ = pft_bench.progressive_attention(
            q, made.k, made.v, topk=made.topk, state=state, backend=backend
        )
    assert counter.get_total_flops() == entry * forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == entry * backward


def test_flop_counter_of_the_dense_backend_counts_whole_maps() -> None:
    made = layer(candidates=9, topk=4, bias=False)
    state = pft_bench.ChainState.sparse(made.index, made.logits, 16)
    with FlopCounterMode(display=False) as counter:
        pft_bench.progressive_attention(made.q, made.k, made.v, topk=4, state=state, backend="dense")
    assert counter.get_total_flops() == 2 * 2 * 3 * 16 * 13 * (16 + 16)


# -- function transforms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", COMPOSITE)
@pytest.mark.usefixtures("one_thread")
def test_torch_func_grad_of_a_layer(backend: str) -> None:
    made = layer(device=device_of(backend))

    def loss(q: Tensor) -> Tensor:
        out, _ = pft_bench.progressive_attention(q, made.k, made.v, topk=5, backend=backend)
        return out.square().sum()

    q = made.q.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(q), q)
    torch.testing.assert_close(torch.func.grad(loss)(made.q), wanted)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread")
def test_torch_func_of_native_ops_is_right_or_an_error(backend: str) -> None:
    """Ops in C++ have no batching rule of their own; a wrong number would be worse than no number."""
    q, k, places = (t.to(device_of(backend)) for t in product("sddmm", 2, 5, 9, 13, 4).values())

    def loss(q: Tensor) -> Tensor:
        return pft_bench.sddmm(q, k, places, backend=backend).square().sum()

    leaf, batch = q.clone().requires_grad_(), torch.stack((q, 2 * q))
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    for call, argument, expected in (
        (torch.func.grad(loss), q, wanted),
        (torch.func.vmap(loss), batch, torch.stack([loss(q), loss(2 * q)])),
    ):
        try:
            got = call(argument)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            continue
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("fake_first", [True, False])
@pytest.mark.usefixtures("one_thread")
def test_a_fake_call_leaves_nothing_behind_for_a_real_one(fake_first: bool) -> None:
    """The dense backend caches a table; a fake tensor in that cache would break every later call."""
    from pft_bench.backends.dense import _relative_positions

    _relative_positions.cache_clear()
    made = layer()

    def real() -> None:
        pft_bench.progressive_attention(made.q, made.k, made.v, topk=5, bias=made.bias, backend="dense")

    if not fake_first:
        real()
    with FakeTensorMode() as mode:
        q, k, v, bias = (mode.from_tensor(t) for t in (made.q, made.k, made.v, made.bias))
        pft_bench.progressive_attention(q, k, v, topk=5, bias=bias, backend="dense")
    real()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("one_thread")
def test_inference_mode_and_no_grad_give_the_same(backend: str) -> None:
    call, leaves = two_layers(backend)
    wanted = call(*leaves)
    with torch.no_grad():
        torch.testing.assert_close(call(*leaves), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(call(*leaves), wanted)
    call(*leaves).sum().backward()  # nothing cached in inference mode stands in the way of training


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread")
def test_gradient_checkpointing_repeats_the_layer_exactly(backend: str) -> None:
    call, leaves = two_layers(backend)
    wanted = torch.autograd.grad(call(*leaves).sum(), leaves)
    out = torch.utils.checkpoint.checkpoint(call, *leaves, use_reentrant=False)
    for got, grad in zip(torch.autograd.grad(out.sum(), leaves), wanted, strict=True):
        assert torch.equal(got, grad)


# -- determinism -------------------------------------------------------------------------------------------------------


def everything(backend: str) -> list[Tensor]:
    """All outputs and gradients of products and layers, enough window-heads for several threads."""
    device = device_of(backend)
    found: list[Tensor] = []
    for op in PRODUCTS:
        inputs = product(op, 7, 33, 40, 20, 17)
        left, right, places = (t.to(device) for t in inputs.values())
        left.requires_grad_()
        right.requires_grad_()
        extra = (40,) if op == "spmm_transpose" else ()
        out = getattr(pft_bench, op)(left, right, places, *extra, backend=backend)
        found += [out, *torch.autograd.grad(out, (left, right), normal(*out.shape).to(device))]
    steps = (
        {"topk": 49, "patterns": 3},
        {"topk": 20},
        {"candidates": 33, "topk": 33},
        {"candidates": 33, "topk": 9},
    )
    for step in steps:
        made = layer(windows=3, tokens=49, dim=20, device=device, **step)  # type: ignore[arg-type]
        arguments = layer_arguments(made, backend)
        out, kept, logits, lse = torch.ops.pft_bench.progressive_attention(*arguments)
        leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        total = (out * normal(*out.shape).to(device)).sum() + (logits * logits).sum()
        found += [out, kept, logits, lse, *torch.autograd.grad(total, leaves)]
    return [tensor.detach() for tensor in found]


@pytest.mark.parametrize("backend", NATIVE)
def test_results_are_the_same_bits_on_any_number_of_threads(backend: str) -> None:
    """The emulator runs on one, in an order of which tests/kernels tries several."""
    previous = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 3) if backend == "cuda-emu" else (1, 2, 3, 3):
            torch.set_num_threads(threads)
            runs.append(everything(backend))
    finally:
        torch.set_num_threads(previous)
    for other in runs[1:]:
        for got, wanted in zip(other, runs[0], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.usefixtures("one_thread")
def test_a_window_does_not_depend_on_its_neighbours(backend: str) -> None:
    """The same window alone and among others, bit for bit."""
    for step in ({"topk": 5}, {"candidates": 9, "topk": 4}):
        made = layer(windows=4, device=device_of(backend), **step)  # type: ignore[arg-type]
        whole = get(backend).attention_forward(made)
        alone = get(backend).attention_forward(made.window(2))
        for got, wanted in zip(alone, whole, strict=True):
            assert torch.equal(got[0], wanted[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("one_thread")
def test_autocast_does_not_take_away_the_float32_sums(backend: str) -> None:
    """Under autocast a plain matmul of float32 tensors is one of bfloat16: dtype, selection and values would change."""
    device = device_of(backend)
    call, leaves = two_layers(backend)
    wanted = call(*leaves)
    with torch.autocast(device, torch.bfloat16):
        got = call(*leaves)
    assert torch.equal(got, wanted)
    if torch.bfloat16 in get(backend).dtypes:
        made = layer(dtype=torch.bfloat16, device=device)
        with torch.autocast(device, torch.bfloat16):
            out, state = pft_bench.progressive_attention(made.q, made.k, made.v, topk=5, backend=backend)
        assert out.dtype == torch.bfloat16
        assert state.logits is not None
        assert state.logits.dtype == torch.float32
