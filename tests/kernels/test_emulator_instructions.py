"""Single instructions and types of the emulator against torch."""

from __future__ import annotations

import pytest
import torch

emu = pytest.importorskip("pft_bench._cuda_emu")

TYPES = {0: torch.float16, 1: torch.bfloat16}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_16_bit_value_widens_like_torch(dtype: int) -> None:
    bits = list(range(1 << 16))
    got = torch.tensor(emu.widen(dtype, bits))
    expected = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(TYPES[dtype]).float()
    assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", TYPES)
def test_narrowing_rounds_to_nearest_even(dtype: int) -> None:
    """All midpoints between neighbours, their neighbours in float32, and random magnitudes down to subnormals."""
    exact = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(TYPES[dtype]).float()
    exact = exact[exact.isfinite()].sort().values
    middle = (exact[1:].double() + exact[:-1].double()) / 2
    middle = middle.float()
    near = torch.cat([middle, middle.nextafter(torch.tensor(9e9)), middle.nextafter(torch.tensor(-9e9))])
    g = torch.Generator().manual_seed(0)
    scattered = torch.randn(20000, generator=g) * 2.0 ** torch.randint(-30, 20, (20000,), generator=g)
    x = torch.cat([near, scattered, torch.tensor([65519.0, 65520.0, 1e38, 0.0, -0.0])])
    got = torch.tensor(emu.round_trip(dtype, x.tolist()), dtype=torch.int32).to(torch.int16)
    assert torch.equal(got, x.to(TYPES[dtype]).view(torch.int16))


@pytest.mark.parametrize("dtype", [0, 1, 2])
def test_mma_by_ldmatrix_fragments_is_a_matrix_product(dtype: int) -> None:
    """Small integers are exact in every type, so a swapped fragment shows as another product."""
    depth = 8 if dtype == 2 else 16
    g = torch.Generator().manual_seed(dtype)
    a = torch.randint(-8, 9, (16, depth), generator=g).float()
    b = torch.randint(-8, 9, (depth, 8), generator=g).float()
    got = torch.tensor(emu.mma(dtype, a.flatten().tolist(), b.flatten().tolist())).view(16, 8)
    assert torch.equal(got, a @ b)


def test_tf32_keeps_eleven_bits() -> None:
    a = torch.zeros(16, 8)
    b = torch.zeros(8, 8)
    a[0, 0], b[0, 0] = 1 + 2.0**-11, 1.0  # a tie: away from zero, to 1 + 2^-10
    a[1, 0] = 1 + 2.0**-12
    got = torch.tensor(emu.mma(2, a.flatten().tolist(), b.flatten().tolist())).view(16, 8)
    assert float(got[0, 0]) == 1 + 2.0**-10
    assert float(got[1, 0]) == 1.0


def test_counters_show_that_kernels_ran() -> None:
    before = emu.counters()
    emu.run_planted("missing_syncthreads", sound=True)
    after = emu.counters()
    assert after["launches"] == before["launches"] + 1
    assert after["threads"] == before["threads"] + 64
    assert after["accesses"] > before["accesses"]
