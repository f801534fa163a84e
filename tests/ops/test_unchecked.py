"""A plain tensor as index: kernels that can check it on the way do, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from made import index, product
from torch import Tensor

import pft_bench
from pft_bench import Index
from pft_bench.backends import BadIndex, get, lent
from pft_bench.backends.cpu import CpuBackend
from pft_bench.ops import sparse

PRODUCTS = ("sddmm", "spmm", "spmm_transpose")
DTYPES = (torch.int16, torch.int32, torch.int64)
# B window-heads of N queries and M keys: more than two blocks of rows each.
B, N, M, D, K = 3, 150, 40, 8, 6


def every_case(test: Any) -> Any:
    """For each product, type of index and order of entries."""
    for name, values, ids in (
        ("op", PRODUCTS, None),
        ("dtype", DTYPES, str),
        ("order", ["ascending", "any"], None),
    ):
        test = pytest.mark.parametrize(name, values, ids=ids)(test)
    return test


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def call(op: str, places: Tensor | Index, backend: str = "cpu", **changes: Any) -> Tensor:
    given = {**product(op, B, N, M, D, K), **changes}
    extra = {"num_keys": M} if op == "spmm_transpose" else {}
    made: Tensor = getattr(pft_bench, op)(**{**given, "index": places}, **extra, backend=backend)
    return made


def places_of(order: str, dtype: torch.dtype) -> Tensor:
    drawn = index(B, N, M, K, dtype=dtype)
    return drawn.sort(-1).values if order == "ascending" else drawn


@pytest.fixture
def no_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the index was gone through before the kernel")

    monkeypatch.setattr(sparse, "checked_index", forbidden)


@pytest.mark.usefixtures("no_pass_of_its_own")
@every_case
def test_a_tensor_is_checked_by_the_kernel_and_gives_what_an_index_gives(
    op: str, dtype: torch.dtype, order: str, threads: int
) -> None:
    places = places_of(order, dtype)
    wanted = call(op, Index(places, M))
    assert torch.equal(call(op, places), wanted)
    for strided in (
        places.mT.contiguous().mT,
        places.repeat_interleave(2, -1)[..., ::2],
        places[:1].expand(B, -1, -1),
    ):
        assert torch.equal(call(op, strided), call(op, Index(strided, M)))


@pytest.mark.usefixtures("no_pass_of_its_own")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", PRODUCTS)
def test_so_it_is_in_16_bits(op: str, dtype: torch.dtype) -> None:
    given = {name: x.to(dtype) for name, x in product(op, B, N, M, D, K).items() if x.is_floating_point()}
    places = places_of("ascending", torch.int64)
    assert torch.equal(call(op, places, **given), call(op, Index(places, M), **given))


@every_case
def test_the_first_bad_entry_is_named_whatever_a_thread_found_first(
    op: str, dtype: torch.dtype, order: str, threads: int
) -> None:
    """With faults in every window-head, the message of an Index, which has one pass and one order."""
    for first in ((0, 0, 0), (0, 64, 5), (1, 149, 3)):
        places = places_of(order, dtype)
        for item, row, place in (first, (1, 149, 4), (2, 3, 0), (2, 70, 5)):
            places[item, row, place] = -7 if place % 2 else places[item, row, place - 1]
        with pytest.raises(ValueError, match="index must hold distinct keys") as wanted:
            Index(places, M)
        with pytest.raises(ValueError, match="index must hold distinct keys") as got:
            call(op, places)
        assert str(got.value) == str(wanted.value)
        assert f"at [{first[0]}, {first[1]}, " in str(got.value)


def test_there_is_no_key_to_name() -> None:
    with pytest.raises(ValueError, match=r"index must hold distinct keys in 0..-1, got 0 at \[0, 0, 0\]"):
        pft_bench.sddmm(torch.ones(1, 1, 3), torch.ones(1, 0, 3), torch.zeros(1, 1, 1).long(), backend="cpu")
    for shape in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        batch, queries, _ = shape
        q, k = torch.ones(batch, queries, 5), torch.ones(batch, 4, 5)
        assert pft_bench.sddmm(q, k, torch.zeros(shape).long(), backend="cpu").shape == shape


@pytest.mark.parametrize("op", PRODUCTS)
def test_a_backend_that_overrides_a_product_gets_a_checked_index(op: str) -> None:
    """It need not know that there is another kind, and its own product is the one that runs."""
    seen: list[torch.dtype] = []

    class Mine(CpuBackend):
        name = "mine"

    def own(self: Mine, left: Tensor, right: Tensor, places: Tensor, *num_keys: int) -> Tensor:
        seen.append(places.dtype)
        made: Tensor = getattr(CpuBackend, op)(self, left, right, places, *num_keys)
        return made

    setattr(Mine, op, own)
    places = places_of("ascending", torch.int64)
    with lent(Mine):
        assert torch.equal(call(op, places, "mine"), call(op, places))
        places[0, 0, 0] = M
        with pytest.raises(ValueError, match=f"got {M} at"):
            call(op, places, "mine")
    assert seen == [torch.int16]


@pytest.mark.parametrize("op", PRODUCTS)
def test_an_index_that_is_good_when_it_is_looked_through_is_used_as_it_is_then(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another thread has changed it since the kernel found a fault."""
    product_, places = getattr(CpuBackend, op), places_of("any", torch.int64)

    def doubts(self: CpuBackend, *operands: Any, checked: bool = True) -> Tensor:
        if not checked:
            raise BadIndex
        made: Tensor = product_(self, *operands)
        return made

    doubts.checks_index = True  # type: ignore[attr-defined]
    wanted = call(op, places)
    monkeypatch.setattr(CpuBackend, op, doubts)
    assert torch.equal(call(op, places), wanted)


@pytest.mark.parametrize("op", PRODUCTS)
def test_a_gradient_is_that_of_the_index_as_it_was_and_looks_at_it_once(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: x.requires_grad_() for name, x in product(op, B, N, M, D, K).items() if name != "index"}
    places = places_of("any", torch.int64)
    wanted = torch.autograd.grad(call(op, Index(places, M), **given).square().sum(), tuple(given.values()))
    out = call(op, places, **given)
    places.fill_(-1)

    def forbidden(*_: object) -> None:
        raise AssertionError("the index was checked again")

    monkeypatch.setattr(sparse, "checked_index", forbidden)
    for name in PRODUCTS:
        checking = getattr(get("cpu"), name)
        monkeypatch.setattr(CpuBackend, name, lambda self, *operands, checking=checking: checking(*operands))
    got = torch.autograd.grad(out.square().sum(), tuple(given.values()))
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
