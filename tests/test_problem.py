"""Problems: what may not be built, what the counts count, what the inputs are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pft_bench.harness.inputs import random_index
from pft_bench.harness.problem import Problem

BASE: dict[str, Any] = {
    "op": "attention",
    "windows": 2,
    "heads": 3,
    "tokens": 16,
    "head_dim": 5,
    "candidates": 9,
    "kept": 4,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "matmul"}, "op must be one of"),
        ({"mode": "test"}, "mode must be one of"),
        ({"kept": 0}, "kept and candidates"),
        ({"kept": 10}, "kept and candidates"),
        ({"candidates": 17}, "kept and candidates"),
        ({"op": "sddmm"}, "sddmm keeps all its candidates"),
        ({"op": "spmm"}, "spmm keeps all its candidates"),
        ({"dtype": "float"}, None),
        ({"dtype": "tensor"}, "dtype must name"),
        ({"dtype": "floats"}, "dtype must name"),
    ],
)
def test_impossible_problems_cannot_be_built(changes: dict[str, Any], message: str | None) -> None:
    if message is None:  # torch.float is torch.float32's other name
        assert Problem(**(BASE | changes)).torch_dtype == torch.float32
        return
    with pytest.raises(ValueError, match=message):
        Problem(**(BASE | changes))


def test_flops_count_two_per_multiply_add() -> None:
    rows, dim = 2 * 3 * 16, 5
    problem = Problem(**BASE)
    assert problem.kernel_flops() == 2 * rows * dim * (9 + 4)
    assert replace(problem, mode="train").kernel_flops() == 3 * problem.kernel_flops()
    sddmm = replace(problem, op="sddmm", candidates=4)
    assert sddmm.kernel_flops() == 2 * rows * dim * 4 == replace(sddmm, op="spmm").kernel_flops()


@pytest.mark.parametrize(
    ("candidates", "kept", "per_row"),
    [
        (16, 16, 0),  # dense, stays dense: no index, no logits
        (16, 4, 4 * (2 + 4)),  # writes index and logits
        (9, 9, 9 * (2 + 4 + 4)),  # reads index, reads and writes logits; the index is unchanged
        (9, 4, 9 * (2 + 4) + 4 * (2 + 4)),
    ],
)
def test_attention_bytes_count_what_the_chain_must_carry(candidates: int, kept: int, per_row: int) -> None:
    rows = 2 * 3 * 16
    matrices, table = 4 * rows * 5 * 4, 7 * 7 * 3 * 4
    problem = Problem(**(BASE | {"candidates": candidates, "kept": kept}))
    assert problem.kernel_bytes() == matrices + table + rows * per_row


def test_bytes_of_the_inputs_are_those_of_the_real_tensors() -> None:
    for op in ("sddmm", "spmm"):
        problem = Problem(**(BASE | {"op": op, "candidates": 4}))
        moved = sum(t.numel() * t.element_size() for t in problem.inputs().values())
        out = 2 * 3 * 16 * (4 if op == "sddmm" else 5) * 4
        assert problem.kernel_bytes() == moved + out, op


def test_inputs_are_the_same_for_the_same_seed_only() -> None:
    first, again = Problem(**BASE).inputs(), Problem(**BASE).inputs()
    other = Problem(**BASE, seed=1).inputs()
    for name in first:
        assert torch.equal(first[name], again[name]), name
        assert not torch.equal(first[name], other[name]), name


def test_attention_inputs_are_views_of_one_projection() -> None:
    made = Problem(**BASE).inputs()
    assert made["q"].shape == (2, 3, 16, 5)
    assert made["q"].untyped_storage().data_ptr() == made["v"].untyped_storage().data_ptr()
    assert made["q"].stride() == (16 * 3 * 3 * 5, 5, 3 * 3 * 5, 1)
    assert made["bias"].shape == (49, 3)
    assert float(made["logits"].amax(-1).abs().max()) == 0


def test_windows_that_are_no_square_have_no_bias_table() -> None:
    problem = Problem(**(BASE | {"tokens": 15}))
    assert problem.window_size is None
    assert "bias" not in problem.inputs()


@pytest.mark.parametrize(
    ("keys", "kept", "dtype"),
    [(16, 16, torch.int16), (16, 3, torch.int16), (1, 1, torch.int16), (32768, 2, torch.int32)],
)
def test_random_index_is_ascending_and_distinct(keys: int, kept: int, dtype: torch.dtype) -> None:
    index = random_index(7, keys, kept, torch.Generator().manual_seed(0))
    assert index.shape == (7, kept)
    assert index.dtype == dtype
    assert index.is_contiguous()
    assert bool((index[:, 1:] > index[:, :-1]).all())
    assert 0 <= int(index.min()) <= int(index.max()) < keys
