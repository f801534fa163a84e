"""An index that is checked once: accepted wherever an index is, the same results, and never changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made import BACKENDS, device_of, index, layer, normal, product
from torch import Tensor

import pft_bench
from pft_bench import ChainState, Index

PRODUCTS = ("sddmm", "spmm", "spmm_transpose")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_gives_what_its_tensor_gives(backend: str, op: str) -> None:
    left, right, places = (t.to(device_of(backend)) for t in product(op, 2, 5, 9, 13, 4).values())
    left.requires_grad_()
    right.requires_grad_()
    extra = (9,) if op == "spmm_transpose" else ()
    call = getattr(pft_bench, op)
    made = Index(places, 9)
    wanted, got = (
        call(left, right, places, *extra, backend=backend),
        call(left, right, made, *extra, backend=backend),
    )
    assert torch.equal(got, wanted)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), (left, right)),
        torch.autograd.grad(wanted.square().sum(), (left, right)),
        strict=True,
    ):
        assert torch.equal(one, other)
    if extra:
        assert torch.equal(call(left, right, made, backend=backend), wanted), (
            "it knows how many keys there are"
        )


def test_a_state_takes_an_index() -> None:
    made = layer(candidates=9, topk=4)
    assert made.index is not None
    assert made.logits is not None
    given = {"topk": 4, "bias": made.bias, "backend": "cpu"}
    states = (
        ChainState.sparse(made.index, made.logits, 16),
        ChainState.sparse(Index(made.index, 16), made.logits),
    )
    one, other = (
        pft_bench.progressive_attention(made.q, made.k, made.v, state=s, **given)[0] for s in states
    )
    assert torch.equal(one, other)


def test_ascending_rows_are_shared_not_copied() -> None:
    """What a chain derives from an index it derives once."""
    places = Index(index(6, 16, 16, 5).sort(-1).values.view(2, 3, 16, 5), 16)
    state = ChainState.sparse(places, normal(2, 3, 16, 5))
    assert state.index is not None
    assert state.index.data_ptr() == places._places.data_ptr()


def test_it_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"index must hold distinct keys in 0..8, got 9 at \[0, 1, 0\]"):
        Index(torch.tensor([[[0, 1], [9, 2]]]), 9)
    with pytest.raises(ValueError, match="it occurs twice in its row"):
        Index(torch.tensor([[[0, 0]]]), 9)
    with pytest.raises(ValueError, match=r"index must be \[..., N, K\] int16/int32/int64, got \[2\] int64"):
        Index(torch.tensor([0, 1]), 9)
    with pytest.raises(ValueError, match=r"index must be .* got \[1, 2\] float32"):
        Index(torch.zeros(1, 2), 9)
    with pytest.raises(ValueError, match="num_keys must be an integer >= 0"):
        Index(torch.tensor([[0, 1]]), -1)


def test_it_cannot_be_changed() -> None:
    given = torch.tensor([[[0, 1], [2, 3]]])
    made = Index(given, 9)
    given[0, 0, 0] = 77
    assert made.tensor().tolist() == [[[0, 1], [2, 3]]]
    made.tensor()[0, 0, 0] = 77
    assert made.tensor().tolist() == [[[0, 1], [2, 3]]]
    with pytest.raises(AttributeError, match="an Index cannot be changed"):
        made.num_keys = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="an Index cannot be changed"):
        del made.num_keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: Index(i, 12), "index must be an Index of 9 keys, got one of 12"),
        (lambda i: Index(i[:, :3], 9), r"index must be \[B, N, K\] = \[2, 5, 4\], got \[2, 3, 4\] int16"),
        (lambda i: Index(i[0], 9), r"index must be \[B, N, K\] int16/int32/int64, got \[5, 4\]"),
    ],
)
def test_one_that_does_not_fit_is_refused(change: Callable[[Tensor], Index], message: str) -> None:
    q, k, places = product("sddmm", 2, 5, 9, 13, 4).values()
    with pytest.raises(ValueError, match=message):
        pft_bench.sddmm(q, k, change(places), backend="cpu")
    with pytest.raises(ValueError, match="num_keys must be that of the Index, 9, got 16"):
        ChainState.sparse(Index(index(2, 4, 9, 3).view(1, 2, 4, 3), 9), normal(1, 2, 4, 3), 16)


def test_copies_pickles_and_names_itself() -> None:
    made = Index(torch.tensor([[[0, 1], [2, 3]]]), 9)
    for other in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made)), made.to("cpu")):
        assert other.tensor().tolist() == made.tensor().tolist()
        assert other.num_keys == 9
    assert repr(made) == "Index([1, 2, 2] of 9 keys, on cpu)"


def test_pytorch_takes_it_apart_and_puts_it_together() -> None:
    """As an argument of vmap, of a checkpointed function and of a compiled one."""
    q, k, places = product("sddmm", 2, 5, 9, 13, 4).values()
    made = Index(places, 9)
    wanted = pft_bench.sddmm(q, k, places, backend="cpu")

    def call(q: Tensor, made: Index) -> Tensor:
        return pft_bench.sddmm(q, k, made, backend="cpu")

    batch = torch.stack((q, 2 * q))
    assert torch.equal(torch.func.vmap(call, in_dims=(0, None))(batch, made)[1], 2 * wanted)
    leaf = q.clone().requires_grad_()
    checkpointed: Any = torch.utils.checkpoint.checkpoint(call, leaf, made, use_reentrant=False)
    assert torch.equal(checkpointed, wanted)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, made), wanted)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("keys", [9, 40_000])
@pytest.mark.parametrize("kept", [1, 3, 16, 17])
def test_the_pass_that_checks_copies_every_entry(kept: int, keys: int, dtype: torch.dtype) -> None:
    """Short rows and long ones, ascending and not, several blocks and pieces of them."""
    if (keys > 32767 and dtype == torch.int16) or kept > keys:
        pytest.skip("no such index")
    for given in (index(3, 2500, min(keys, 60), kept), index(3, 2500, min(keys, 60), kept).sort(-1).values):
        given = (given + (keys - min(keys, 60))).to(dtype)
        made = Index(given, keys)
        assert torch.equal(made.tensor(), given.long())
        assert made._places.dtype == (torch.int16 if keys <= 32767 else torch.int32)
        assert made._places.data_ptr() != given.data_ptr()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("at", [(0, 0, 0), (1, 1249, 15), (2, 2499, 15), (2, 7, 0)])
@pytest.mark.parametrize("value", [-1, 9000, None], ids=["negative", "too large", "twice"])
def test_one_wrong_entry_among_many_is_found(
    value: int | None, at: tuple[int, int, int], ascending: bool
) -> None:
    given = index(3, 2500, 60, 16)
    given = given.sort(-1).values if ascending else given
    batch, row, place = at
    given[batch, row, place] = given[batch, row, place - 1] if value is None else value
    with pytest.raises(ValueError, match=rf"at \[{batch}, {row}, "):
        Index(given, 60)
