"""The adapter of the published extension, with a stand-in that has its four functions and its calling conventions."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

import pft_bench
from pft_bench.backends import Layer, base, get, official
from pft_bench.harness.check.operator import check_layer, check_product


def _expect(index: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
    assert index.dtype == torch.int32
    assert index.is_contiguous()
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in operands)
    return index.long()


def _dense(a: torch.Tensor, places: torch.Tensor, keys: int) -> torch.Tensor:
    return a.new_zeros(*a.shape[:2], keys).scatter(-1, places, a)


def qmk(a: torch.Tensor, b: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (a @ b).gather(-1, _expect(index, a, b))


def qmk_backward(
    grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, index: torch.Tensor
) -> list[torch.Tensor]:
    g = _dense(grad, _expect(index, grad, a, b), b.shape[2])
    return [g @ b.mT, a.mT @ g]


def amv(a: torch.Tensor, v: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return _dense(a, _expect(index, a, v), v.shape[1]) @ v


def amv_backward(
    grad: torch.Tensor, a: torch.Tensor, v: torch.Tensor, index: torch.Tensor
) -> list[torch.Tensor]:
    places = _expect(index, grad, a, v)
    return [(grad @ v.mT).gather(-1, places), _dense(a, places, v.shape[1]).mT @ grad]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> official.OfficialBackend:
    module = ModuleType("smm_cuda")
    for name, function in zip(official.FUNCTIONS, (qmk, qmk_backward, amv, amv_backward), strict=True):
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "smm_cuda", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(official.OfficialBackend, "devices", frozenset({"cpu"}))
    found = official.OfficialBackend()
    monkeypatch.setitem(base._loaded, "official", found)
    return found


def _index(shape: tuple[int, ...], keys: int) -> torch.Tensor:
    return torch.rand(*shape[:-1], keys).argsort(-1)[..., : shape[-1]].sort(-1).values.to(torch.int16)


@pytest.mark.parametrize("kept", [1, 7, 25])
def test_products(backend: official.OfficialBackend, kept: int) -> None:
    index = _index((3, 25, kept), 25)
    q, k, v = torch.randn(3, 3, 25, 13)
    results = check_product(backend, "sddmm", {"q": q, "k": k, "index": index}, train=True)
    results += check_product(
        backend, "spmm", {"a": torch.randn(3, 25, kept), "v": v, "index": index}, train=True
    )
    assert not [str(r) for r in results if not r.passed]


@pytest.mark.parametrize(("candidates", "topk"), [(None, 25), (None, 6), (12, 5), (12, 12)])
def test_layers_and_their_gradients(
    backend: official.OfficialBackend, candidates: int | None, topk: int
) -> None:
    q, k, v = torch.randn(3, 2, 2, 25, 13)
    index = logits = None
    if candidates:
        index, logits = _index((2, 2, 25, candidates), 25), -torch.rand(2, 2, 25, candidates)
    case = Layer(q, k, v, torch.randn(81, 2), None, index, logits, 13**-0.5, 100.0, topk)
    results = check_layer(backend, case, train=True)
    assert not [str(r) for r in results if not r.passed]


def test_public_ops_reach_it(backend: official.OfficialBackend) -> None:
    q, k = torch.randn(2, 2, 9, 4, requires_grad=True)
    index = _index((2, 9, 3), 9)
    out = pft_bench.sddmm(q, k, index, backend="official")
    assert torch.allclose(out, pft_bench.sddmm(q, k, index, backend="reference"), atol=1e-5)
    assert out.requires_grad


def test_what_it_cannot_address_is_refused(backend: official.OfficialBackend) -> None:
    """Its kernels would run into other memory; 65536 window-heads, 2^31 entries, keys that are not the queries."""
    one = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="at most 65535 window-heads, got 65536"):
        backend.spmm(
            one.expand(65536, 1, 1), one.expand(65536, 1, 1), one.to(torch.int16).expand(65536, 1, 1)
        )
    many = torch.zeros(1, 1, 1, dtype=torch.int16).expand(8192, 1024, 256)
    with pytest.raises(ValueError, match=r"2\^31 - 1 index entries, got 2147483648"):
        official._index(many)
    with pytest.raises(ValueError, match="as many keys as queries, got 8 and 9"):
        backend.sddmm(torch.zeros(1, 9, 4), torch.zeros(1, 8, 4), torch.zeros(1, 9, 2, dtype=torch.int16))


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smm_cuda", None)
    assert "build the extension" in str(official.OfficialBackend().available())
    monkeypatch.setitem(sys.modules, "smm_cuda", ModuleType("smm_cuda"))
    assert "has no SMM_QmK_forward_cuda" in str(official.OfficialBackend().available())
    module = ModuleType("smm_cuda")
    for name in official.FUNCTIONS:
        setattr(module, name, None)
    monkeypatch.setitem(sys.modules, "smm_cuda", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device" in str(official.OfficialBackend().available())


def test_it_is_registered() -> None:
    assert get("official").name == "official"
