"""float32 on tensor cores, each number as the sum of three of bfloat16: as good as FFMA, on hard inputs too.

The emulator cuts off what tensor cores cut off (kernels/emulator/mma.h), so the figures here include it.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulated import product
from made import layer

from pft_bench.backends import Layer, get
from pft_bench.harness.check.operator import check_layer, exact_product
from pft_bench.harness.check.oracle import forward

emu = pytest.importorskip("pft_bench._cuda_emu")
pytestmark = pytest.mark.usefixtures("emulator_defaults")
LARGEST = torch.finfo(torch.float32).max


def powers(shape: torch.Size, low: int, high: int) -> torch.Tensor:
    return 2.0 ** torch.randint(low, high, shape, generator=torch.Generator().manual_seed(low))


def cancelling(case: Layer) -> Layer:
    """Logits that are small differences of large products: neighbours in k have opposite signs, those in q agree."""
    q, k = 30 * case.q, 30 * case.k
    q[..., 1::2] = q[..., ::2]
    k[..., 1::2] = -k[..., ::2] * (1 + 2e-5 * case.k[..., 1::2])
    return case.with_tensors(q=q, k=k)


HARD = {
    "as drawn": lambda c: c,
    "one sign": lambda c: c.with_tensors(q=c.q.abs(), k=c.k.abs(), v=c.v.abs()),
    "wide range": lambda c: c.with_tensors(
        q=c.q * powers(c.q.shape, -20, 8),
        k=c.k * powers(c.k.shape, -21, 8),
        v=c.v * powers(c.v.shape, -60, 60),
    ),
    "cancelling": cancelling,
    "values of 2^+-100": lambda c: c.with_tensors(v=c.v * powers(c.v.shape[:-1], -100, 100).unsqueeze(-1)),
    "1e38": lambda c: c.with_tensors(v=(c.v / 5).clamp(-1, 1) * LARGEST),
    "tiny queries, huge keys": lambda c: c.with_tensors(q=c.q * 1e-30, k=c.k * 1e30),
}


# What becomes of weights a [B, N, K] and rows x [B, N, D].
HARD_PRODUCTS = {
    "as drawn": lambda a, x: (a, x),
    "one sign": lambda a, x: (a.abs(), x.abs()),
    "wide range": lambda a, x: (a * powers(a.shape, -40, 40), x * powers(x.shape, -41, 40)),
    "cancelling": lambda a, x: (
        a.abs(),
        x[:, :1] * (-1.0) ** torch.arange(x.shape[1]).view(-1, 1) + 1e-5 * x,
    ),
    "1e38": lambda a, x: (a.clamp(-1, 1) / a.shape[1], (x / 5).clamp(-1, 1) * LARGEST),
    "tiny weights, huge rows": lambda a, x: (a * 1e-30, x * 1e30),
}


def weighted_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a [1, 64, 24], x [1, 64, 40] and the index, of 64 keys: four tiles of rows."""
    made = product("spmm", 1, 64, 64, 40, 24, torch.float32, 5, torch.int16)
    return made["a"], made["v"], made["index"]


@pytest.mark.parametrize("name", HARD_PRODUCTS)
def test_hard_transposed_products_are_as_exact_as_by_ffma(name: str) -> None:
    a, x, index = weighted_rows()
    a, x = HARD_PRODUCTS[name](a, x)
    errors = []
    for rung in ("split", "tiles"):
        backend = get(f"cuda-emu-{rung}")
        out = backend.spmm_transpose(a, x, index, 64)
        exact, bound = exact_product("spmm_transpose", a, x, index, 64)
        assert ((out.double() - exact).abs() <= bound).all()
        spread = torch.zeros(1, 64, 64, dtype=torch.float64).scatter(-1, index.long(), a.double())
        added = spread.abs().mT @ x.double().abs()
        errors.append((out.double() - exact).abs() / added.clamp_min(1e-300))
    assert errors[0].mean() <= 1.25 * errors[1].mean()
    assert errors[0].max() <= 2 * errors[1].max()


def test_transposed_products_of_numbers_that_parts_do_not_hold() -> None:
    """Those that would round to infinity are added by FFMA; subnormal parts lose what the bound says, and no more."""
    split, tiles = get("cuda-emu-split"), get("cuda-emu-tiles")
    a, x, index = weighted_rows()
    for factor, other in ((1e-39, 1e30), (1e30, 1e-39)):
        exact, bound = exact_product("spmm_transpose", factor * a, other * x, index, 64)
        out = split.spmm_transpose(factor * a, other * x, index, 64)
        assert ((out.double() - exact).abs() <= bound).all()
    first, second = index[0, 3, 1].long(), index[0, 7, 2].long()
    ones = a.sign()
    ones[0, 3, 1], x[0, 7, 5] = LARGEST, -LARGEST
    x[0, 3] = 0.5
    wanted, out = (one.spmm_transpose(ones, x, index, 64)[0] for one in (tiles, split))
    assert torch.allclose(out, wanted, rtol=1e-6, atol=1e-5)
    assert out[first].isfinite().all()
    assert out[second, 5].abs() >= LARGEST / 2
    ones[0, 3, 1] = math.inf
    out = split.spmm_transpose(ones, x, index, 64)[0]
    others = torch.arange(64) != first
    assert (out[first].isnan() | (out[first] == math.inf)).all()
    assert torch.allclose(out[others], wanted[others], rtol=1e-6, atol=1e-5)


# candidates of 64 keys (None: a dense layer), and how many of them are kept
STEPS = [(None, 64), (None, 16), (48, 48), (48, 16)]


@pytest.mark.parametrize(("candidates", "topk"), STEPS)
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs_are_as_exact_as_by_ffma(name: str, candidates: int | None, topk: int) -> None:
    """Every check that FFMA passes, and the mean and largest error relative to what was added beside FFMA's."""
    sizes = {"tokens": 64, "dim": 40, "patterns": int(candidates is None)}
    case = HARD[name](layer(windows=1, heads=1, candidates=candidates, topk=topk, seed=3, **sizes))
    errors, failures = {}, {}
    for rung in ("ffma", "split"):
        backend = get(f"cuda-emu-{rung}")
        failures[rung] = {
            str(r).split(":")[0] for r in check_layer(backend, case, train=False) if not r.passed
        }
        out, index, _, _ = backend.attention_forward(case)
        exact = forward(case, index if index.numel() else None)
        added = exact.attn.value @ case.v.double().abs()
        errors[rung] = ((out.double() - exact.out.value).abs() / added.clamp_min(1e-300)).flatten()
    assert failures["split"] <= failures["ffma"]
    assert errors["split"].mean() <= 1.2 * errors["ffma"].mean()
    assert errors["split"].max() <= 2 * errors["ffma"].max()


@pytest.mark.parametrize(("candidates", "topk"), STEPS)
def test_subnormal_operands_stay_within_what_parts_may_lose(candidates: int | None, topk: int) -> None:
    """Here alone FFMA, and with it PyTorch, is more exact: its error is no measure."""
    case = layer(windows=1, heads=1, tokens=64, dim=40, candidates=candidates, topk=topk, seed=3)
    for hard in (
        case.with_tensors(q=case.q * 1e-39, k=case.k * 1e37),
        case.with_tensors(v=case.v * 1e-39),
        case.with_tensors(q=case.q * 1e-39, k=case.k * 1e-39),
    ):
        failed = [str(r) for r in check_layer(get("cuda-emu-split"), hard, train=False) if not r.passed]
        assert all(one.startswith("attention against PyTorch") for one in failed), "\n".join(failed)


@pytest.mark.parametrize("candidates", [None, 16])
def test_numbers_that_round_to_infinity_do_not(candidates: int | None) -> None:
    """The largest float32 numbers have no high part by rounding: 3.4e38 would be infinite in bfloat16."""
    case = layer(windows=1, heads=1, tokens=16, dim=8, candidates=candidates, topk=16, bias=False)
    case = case.with_tensors(q=torch.zeros_like(case.q), v=torch.full_like(case.v, LARGEST) / 2)
    if case.logits is not None:  # all weights alike
        case = case.with_tensors(logits=torch.zeros_like(case.logits))
    case.v[..., 1] = -LARGEST
    case.v[..., 0, 0], case.v[..., 1:, 0] = LARGEST, 0.0
    out = get("cuda-emu-split").attention_forward(case)[0]
    assert torch.allclose(out, get("cuda-emu-ffma").attention_forward(case)[0], rtol=1e-6, atol=0)
    q, k = torch.zeros_like(case.q), torch.zeros_like(case.k)
    q[..., 0], k[..., 0] = LARGEST, 1e-30 * torch.linspace(-1, 1, 16)
    out = get("cuda-emu-split").attention_forward(case.with_tensors(q=q, k=k))[0]
    assert torch.allclose(
        out, get("cuda-emu-ffma").attention_forward(case.with_tensors(q=q, k=k))[0], rtol=1e-6
    )


@pytest.mark.parametrize(("candidates", "topk"), [(None, 16), (None, 5), (13, 13), (13, 5)])
def test_what_is_not_finite_comes_out_as_by_ffma(candidates: int | None, topk: int) -> None:
    """Infinity times a part that is zero is NaN in the small products; it must not reach the result."""
    case = layer(windows=1, heads=1, tokens=16, dim=8, candidates=candidates, topk=topk, bias=False)
    q, k, v = case.q.clone(), case.k.clone(), case.v.clone()
    q[..., 0], k[..., 0] = 1.0, 1.0
    k[..., 3, 0] = -math.inf  # one logit of minus infinity: weight zero, the others stay
    minus = case.with_tensors(q=q, k=k)
    v[..., 2, 1], v[..., 5, 2], v[..., 6, 3] = math.inf, -math.inf, math.nan
    both = case.with_tensors(q=q, k=k, v=v)
    plus = case.with_tensors(q=torch.where(torch.arange(16).view(16, 1) == 4, math.inf, q), k=k)
    for bad in (minus, both, plus):
        split, ffma = (get(f"cuda-emu-{rung}").attention_forward(bad) for rung in ("split", "ffma"))
        assert split[0].isfinite().any()
        for x, y in zip(split, ffma, strict=True):
            if x.is_floating_point():
                assert torch.equal(x.isnan(), y.isnan())
                assert torch.equal(x.isinf(), y.isinf())
            else:
                assert torch.equal(x, y)


@pytest.mark.parametrize("dim", [1, 8, 9, 16, 24, 33, 72])
def test_every_number_of_channels(dim: int) -> None:
    """Steps of sixteen channels, a last one of eight, and more than one chunk, for logits and values.

    A sparse layer's queries are kept in registers, up to 40 channels.
    """
    for candidates, topk in ((None, 25), (None, 6), *(((14, 6),) if dim <= 40 else ())):
        sizes = {"tokens": 25, "dim": dim, "dim_v": max(1, 73 - dim), "patterns": int(candidates is None)}
        case = layer(windows=1, heads=2, candidates=candidates, topk=topk, **sizes)
        failed = [str(r) for r in check_layer(get("cuda-emu-split"), case, train=False) if not r.passed]
        assert not failed, "\n".join(failed)


def test_mma_cuts_off_what_lies_below_the_largest_addend() -> None:
    """Products are exact; 2^-24 of the largest survives alignment, 2^-25 does not, and a sum is cut off too."""
    a, b = torch.zeros(16, 16), torch.zeros(16, 8)
    b[:4, 0] = 1.0
    a[0, :3] = torch.tensor([1.0, 2.0**-24, 2.0**-24])  # both survive: 1 + 2^-23
    a[1, :3] = torch.tensor([1.0, 2.0**-25, 2.0**-25])  # neither
    a[2, :2] = torch.tensor([1.0, 2.0**-24])  # survives, and is cut off the sum
    a[3, :3] = torch.tensor([-1.0, -(2.0**-24), -(2.0**-25)])  # towards zero
    a[4, :3] = torch.tensor([1.0, -1.0, 2.0**-30])  # too small beside what cancels
    a[5, :1] = torch.tensor([2.0**-130])  # bfloat16's subnormal numbers are numbers
    got = torch.tensor(emu.mma(1, a.flatten().tolist(), b.flatten().tolist())).view(16, 8)[:6, 0]
    assert got.tolist() == [1 + 2.0**-23, 1.0, 1.0, -1.0, 0.0, 2.0**-130]
