"""The ladder's own product follows the rule: a time belongs to outputs that were right."""

from __future__ import annotations

import torch
from torch import Tensor

from pft_bench.backends import get, lent
from pft_bench.harness.measure.guards import without_guards
from pft_bench.harness.measure.results import Rejection
from pft_bench.harness.measure.rounds import measure
from pft_bench.harness.measure.timer import CpuTimer
from pft_bench.harness.selftest.cheating import BLOCK_S, HONEST, PLAN, tiny_settings
from pft_bench.harness.selftest.cheats.base import Products
from pft_bench.harness.selftest.mutant import BASE
from pft_bench.maintain.gpu.ladder import LadderProduct


class ZerosLater(Products):
    """Right until it is timed."""

    name = "cheat"

    def spmm_transpose(self, a: Tensor, x: Tensor, index: Tensor, num_keys: int) -> Tensor:
        made = get(BASE).spmm_transpose(a, x, index, num_keys)
        return torch.zeros_like(made) if self.is_timed() else made


def rejections() -> dict[str, Rejection | None]:
    with lent(ZerosLater), torch.no_grad():
        group = LadderProduct(tiny_settings("op", "infer", "cheat"), "spmm_transpose", 5, ["cheat"])
        found = measure(group.contenders(), HONEST, PLAN, timer=CpuTimer(BLOCK_S))
    return {name: item.rejection for name, item in found.contenders.items()}


def test_a_transposed_product_that_is_wrong_when_it_is_timed_has_no_time() -> None:
    found = rejections()
    assert found[HONEST] is None
    assert found["cheat"] is not None
    assert "spmm_transpose rows" in found["cheat"].reason
    with without_guards("results judged"):
        assert rejections() == {HONEST: None, "cheat": None}
