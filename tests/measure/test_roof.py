"""The roof on a processor that has no instructions for 16 bits."""

from __future__ import annotations

import pytest
import torch

from pft_bench.harness.measure import roof

RATE = {torch.float32: 1e10, torch.bfloat16: 1e8, torch.float64: 5e9}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.dtype, int]]:
    """Side, dtype and number of trials of every product, which take what `RATE` says; copies take no time."""
    done: list[tuple[int, torch.dtype, int]] = []

    def best_s(call, device: torch.device, trials: int = roof.TRIALS) -> float:
        result = call()
        if result.dim() == 1:
            return 1e-6
        done.append((len(result), result.dtype, trials))
        return 2 * len(result) ** 3 / RATE[result.dtype]

    monkeypatch.setattr(roof, "_best_s", best_s)
    monkeypatch.setattr(roof, "MATRIX_SIDE", 512)
    monkeypatch.setattr(roof, "COPY_BYTES", 1 << 10)
    return done


def test_what_would_take_long_is_measured_on_a_smaller_product(products) -> None:
    found = roof.measure_roof("cpu", torch.bfloat16)
    longest = max(2 * side**3 / RATE[dtype] * trials for side, dtype, trials in products)
    assert longest < roof.TRIALS * roof.LONGEST_S
    assert (128, torch.bfloat16, roof.TRIALS) in products
    assert (256, torch.bfloat16, 1) not in products
    assert found.flops_per_s == pytest.approx(RATE[torch.float32]), "a kernel may compute in float32"
    assert (found.dtype, found.slower("float32")) == ("float32", None)
    assert "more slowly in bfloat16 than in float32 on this processor" in str(found.slower("bfloat16"))
    assert found.method.startswith("best of 5: matrix product of side 512 in float32, copy of ")


def test_sixteen_bits_that_are_faster_have_a_roof_of_their_own(
    products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RATE, torch.bfloat16, 1e11)
    found = roof.measure_roof("cpu", torch.bfloat16)
    assert found.flops_per_s == pytest.approx(1e11)
    assert "in bfloat16" in found.method
    assert found.slower("bfloat16") is None


def test_float64_is_not_held_to_float32(products) -> None:
    assert roof.measure_roof("cpu", torch.float64).flops_per_s == pytest.approx(RATE[torch.float64])


def test_an_older_roof_says_nothing_of_16_bits() -> None:
    assert roof.Roof(1.0, 1.0).slower("bfloat16") is None
