"""Rungs of the CUDA ladder are backends with names: each takes its own kernel, and nobody meets one unasked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from made import layer, product

import pft_bench
from pft_bench.backends import Backend, base, get, names, register, require, rungs
from pft_bench.harness.cases.settings import Settings, _default_backends

emu = pytest.importorskip("pft_bench._cuda_emu")

PRODUCTS = {
    "sddmm": ("sddmm_plain", "sddmm_resident", "sddmm_tiles"),
    "spmm": ("spmm_plain", "spmm_resident", "spmm_tiles"),
    "spmm_transpose": ("spmm_transpose_plain", "spmm_transpose_owner", "spmm_transpose_tiles"),
}
SPARSE = ("attention_forward_sparse", "attention_forward_tiled", "attention_forward_tiled_split")


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("rung", ["plain", "resident", "gather", "tiles"])
def test_a_rung_of_the_products_takes_its_kernel_and_no_other_rung_touches_them(
    launched: Callable[..., list[str]], op: str, rung: str
) -> None:
    given = product(op, 2, 9, 9, 8, 3, dtype=torch.float16, index_dtype=torch.int16)
    more = (9,) if op == "spmm_transpose" else ()
    call = getattr(get(f"cuda-emu-{rung}"), op)
    plain, resident, chosen = PRODUCTS[op]
    expected = {"plain": plain, "resident": resident}.get(rung, chosen)
    assert launched(lambda: call(*given.values(), *more)) == [expected]


@pytest.mark.parametrize(
    ("rung", "kernel"), [("gather", SPARSE[0]), ("tiles", SPARSE[1]), ("plain", SPARSE[1])]
)
def test_a_rung_of_the_layers_takes_its_kernel(
    launched: Callable[..., list[str]], rung: str, kernel: str
) -> None:
    given = layer(dim=8, candidates=5, topk=3, dtype=torch.float16)
    assert launched(lambda: get(f"cuda-emu-{rung}").attention_forward(given)) == [kernel]


@pytest.mark.parametrize(
    ("rung", "kernel"),
    [("gather", SPARSE[0]), ("ffma", SPARSE[0]), ("split", SPARSE[2]), ("plain", SPARSE[2])],
)
def test_a_rung_of_float32_layers_takes_its_kernel(
    launched: Callable[..., list[str]], rung: str, kernel: str
) -> None:
    given = layer(dim=8, candidates=5, topk=3)
    assert launched(lambda: get(f"cuda-emu-{rung}").attention_forward(given)) == [kernel]


@pytest.mark.parametrize("topk", [25, 6])
def test_dense_float32_layers_take_tensor_cores_and_a_rung_does_not(
    launched: Callable[..., list[str]], topk: int
) -> None:
    kernel = "attention_forward_online" if topk == 25 else "attention_forward_dense"
    whole, half = (
        layer(tokens=25, dim=8, topk=topk, dtype=dtype) for dtype in (torch.float32, torch.float16)
    )
    for name, suffix in (("cuda-emu", "_split"), ("cuda-emu-split", "_split"), ("cuda-emu-ffma", "")):
        assert launched(partial(get(name).attention_forward, whole)) == [kernel + suffix]
    assert launched(partial(get("cuda-emu").attention_forward, half)) == [kernel]
    assert get("cuda-emu-ffma").dtypes == {torch.float32}


def test_a_rung_of_float32_decides_transposed_products(launched: Callable[..., list[str]]) -> None:
    """Of a layer's backward pass too."""
    given = product("spmm_transpose", 2, 36, 36, 8, 1)
    few = {name: get(name).spmm_transpose for name in ("cuda-emu", "cuda-emu-split", "cuda-emu-ffma")}
    taken = [launched(lambda call=call: call(*given.values(), 36)) for call in few.values()]
    assert taken == [[f"spmm_transpose_{name}"] for name in ("sorted", "split", "sorted")]
    case = layer(dim=8, candidates=5, topk=3)
    kept = torch.zeros(*case.index.shape[:-1], 3, dtype=torch.int16)
    rows = torch.zeros(case.index.shape[:-1])
    for name, kernels in (("cuda-emu", ["split", "split"]), ("cuda-emu-ffma", ["tiles", "sorted"])):
        names = launched(lambda: get(name).attention_backward(case, case.v, None, kept, case.v, rows))  # noqa: B023
        taken = [one for one in names if one.startswith("spmm_transpose")]
        assert taken == [f"spmm_transpose_{kernel}" for kernel in kernels]


def test_the_public_ops_take_rungs(launched: Callable[..., list[str]]) -> None:
    given = product("sddmm", 2, 9, 9, 8, 3, index_dtype=torch.int16)
    for rung, kernel in (("plain", "sddmm_plain"), ("resident", "sddmm_resident")):
        call = lambda name=f"cuda-emu-{rung}": pft_bench.sddmm(*given.values(), backend=name)  # noqa: E731
        assert launched(call) == [kernel]


def test_nobody_sets_a_rung_from_outside() -> None:
    backend: Any = get("cuda-emu")
    for attribute in ("version", "candidates", "float32"):
        with pytest.raises(AttributeError):
            setattr(backend, attribute, "plain")
    assert get("cuda-emu-plain") is get("cuda-emu-plain")
    assert get("cuda-emu-plain") is not backend
    assert backend.version == -1


def test_rungs_are_named_by_their_family_alone() -> None:
    assert rungs("cuda-emu") == tuple(
        f"cuda-emu-{rung}" for rung in ("plain", "resident", "sorted", "gather", "tiles", "ffma", "split")
    )
    assert rungs("cuda")[0] == "cuda-plain"
    assert rungs("dense") == ()
    every = {name for family in names() for name in rungs(family)}
    assert not every & set(names())
    assert not every & {row.name for row in pft_bench.backends()}
    for wrong in ("cuda-tile", "cuda-emu-", "cuda-", "cuda-emu-plain-plain", "dense-plain", "-plain"):
        with pytest.raises(ValueError, match=r"backend must be 'auto' or one of .*names their rungs too"):
            get(wrong)


def test_a_rung_is_asked_like_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get("cuda-emu-tiles").dtypes == {torch.float16, torch.bfloat16}
    with pytest.raises(
        TypeError, match=r"backend 'cuda-emu-tiles' takes torch.bfloat16 or torch.float16, got"
    ):
        require("cuda-emu-tiles", torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="backend 'cuda-emu-plain' is checked, never timed"):
        Settings.make(schedules=["16"], backends=["cuda-emu-plain"], device="cpu", threads=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("cuda", *rungs("cuda")):
        monkeypatch.setattr(get(name), "available", lambda: None)
    found = _default_backends("cuda", torch.float16)
    assert "cuda" in found
    assert not set(rungs("cuda")) & set(found), "a default run is no longer than it was"
    asked = Settings.make(schedules=["16"], backends=["cuda-tiles"], device="cuda", dtype="float16")
    assert asked.backends == ("dense", "cuda-tiles")


def test_a_rung_s_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BACKENDS", dict(base._BACKENDS))

    class Other(Backend):
        name = "cuda-plain"

    with pytest.raises(ValueError, match="backend name 'cuda-plain' is taken already, by a rung of 'cuda'"):
        register(Other)
