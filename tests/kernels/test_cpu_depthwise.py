"""depthwise_gelu_add of the cpu backend against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import EPS
from torch.utils.flop_counter import FlopCounterMode

from pft_bench import _cpu
from pft_bench.backends import Backend, get
from pft_bench.backends.base import poisoned
from pft_bench.harness.check.bounds import output_rounding
from pft_bench.ops import depthwise_gelu_add

CPU, DENSE = get("cpu"), get("dense")

SHAPES = {  # batch, height, width, channels, kernel
    "as published, small": (1, 16, 24, 48, 7),
    "light model": (2, 9, 19, 52, 7),
    "tile and one pixel": (1, 3, 9, 16, 3),
    "many pieces, a tail of channels": (2, 21, 37, 33, 5),
    "one channel": (1, 5, 40, 1, 7),
    "kernel larger than the image": (1, 2, 3, 17, 15),
    "one pixel": (3, 1, 1, 8, 7),
    "kernel of one": (1, 4, 17, 20, 1),
    "no image": (0, 4, 5, 6, 3),
}


def operands(batch: int, height: int, width: int, channels: int, kernel: int, *, strided: bool = False):
    g = torch.Generator().manual_seed(3)
    # A slice of wider pixels is what a view of other channels would be.
    wide = torch.randn(batch, height, width, 2 * channels + 3, generator=g)
    x, residual = wide[..., 2 : 2 + channels], wide[..., channels + 2 : 2 * channels + 2]
    weight = torch.randn(channels, 1, kernel, kernel, generator=g) / kernel
    bias = torch.randn(channels, generator=g)
    return (x, weight, bias, residual) if strided else (x.contiguous(), weight, bias, residual.contiguous())


def check(x, weight, bias, residual, first_row=0):
    """Within the bound; the last rounding is that of the operands' dtype."""
    in_double = [None if t is None else t.double() for t in (x, weight, bias, residual)]
    with poisoned():
        made = CPU.depthwise_gelu_add(x, weight, bias, residual, first_row)
    expected = DENSE.depthwise_gelu_add(*in_double, first_row)
    assert made.shape == expected.shape
    assert made.is_contiguous()
    # The sum of k^2 + 1 terms (Higham, ch. 3) where gelu's slope is 1.13 at most; gelu itself; the residual's addition.
    taps = weight.shape[-1] ** 2
    sizes = [None if t is None else t.abs() for t in in_double]
    magnitude = torch.nn.functional.conv2d(
        sizes[0].permute(0, 3, 1, 2),
        sizes[1],
        sizes[2],
        padding=weight.shape[-1] // 2,
        groups=weight.shape[0],
    ).permute(0, 2, 3, 1)[:, first_row : first_row + residual.shape[1]]
    bound = 1.13 * (taps + 8) * EPS * magnitude + 3e-7 + 2 * EPS * (expected.abs() + sizes[3])
    assert made.dtype == x.dtype
    if x.dtype != torch.float32:
        bound = bound + output_rounding(expected, x.dtype)
    assert bool(((made.double() - expected).abs() <= bound).all()), (made.double() - expected).abs().max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape):
    check(*operands(*shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sixteen_bits(shape, dtype):
    check(*(x.to(dtype) for x in operands(*shape)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_of_views_and_some_rows_without_a_bias(dtype):
    x, weight, _, residual = (t.to(dtype) for t in operands(2, 20, 21, 24, 7, strided=True))
    wide = torch.stack((x, x), 3)[:, :, :, 1]  # pixels of two, of which one is asked for
    check(wide, weight, None, residual[:, 3:17], 3)


def test_views_and_no_bias():
    x, weight, _, residual = operands(2, 11, 20, 24, 7, strided=True)
    check(x, weight, None, residual)


@pytest.mark.parametrize(("first_row", "rows"), [(0, 4), (3, 14), (17, 3), (5, 0)])
def test_some_rows_of_the_image(first_row, rows):
    """A strip is given with the rows around it, which are not zeros."""
    x, weight, bias, residual = operands(2, 20, 21, 24, 7)
    check(x, weight, bias, residual[:, first_row : first_row + rows], first_row)


def gelu(x):
    """The kernel's gelu of a flat tensor."""
    image = x.view(1, 1, -1, 1)
    one = torch.ones(1, 1, 1, 1)
    return CPU.depthwise_gelu_add(image, one, None, torch.zeros_like(image), 0).view(-1)


def test_gelu_is_closer_than_pytorchs():
    x = torch.linspace(-14, 14, 200_001)
    expected = torch.nn.functional.gelu(x.double())
    error = (gelu(x).double() - expected).abs()
    assert float(error.max()) < 3e-7
    assert float(error.max()) < float((torch.nn.functional.gelu(x).double() - expected).abs().max())


def test_gelu_where_there_is_nothing_to_round():
    x = torch.tensor([0.0, -0.0, float("inf"), 2.0**100, -(2.0**100), -float("inf")])
    assert gelu(x).tolist() == [0.0, 0.0, float("inf"), 2.0**100, 0.0, 0.0]
    assert bool(gelu(torch.tensor([float("nan")])).isnan().all())


def test_threads_do_not_change_a_bit():
    case = operands(2, 40, 50, 33, 7)
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            made.append(CPU.depthwise_gelu_add(*case, 0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_the_op_reaches_the_kernel_and_plain_pytorch(monkeypatch):
    case = operands(1, 8, 9, 16, 3)
    torch.testing.assert_close(
        depthwise_gelu_add(*case, 0, "cpu"), depthwise_gelu_add(*case, 0, "dense"), atol=1e-6, rtol=1e-6
    )
    calls = []
    monkeypatch.setattr(Backend, "depthwise_gelu_add", lambda *_: calls.append("plain"))
    monkeypatch.setattr(type(CPU), "depthwise_gelu_add", lambda *args: calls.append("cpu") or args[4].clone())
    depthwise_gelu_add(*case, 0, "cpu")
    depthwise_gelu_add(*case, 0, "dense")
    assert calls == ["cpu", "plain"]


def test_the_op_is_traced_and_counted_as_the_convolution_it_is():
    case = operands(1, 8, 9, 16, 3)
    torch.library.opcheck(torch.ops.pft_bench.depthwise_gelu_add.default, (*case, 0, "cpu"))
    counts = []
    for backend in ("cpu", "dense"):
        with FlopCounterMode(display=False) as counter:
            depthwise_gelu_add(*case, 0, backend)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 8 * 9 * 16 * 9] * 2


def test_the_op_names_what_is_wrong_with_an_argument():
    x, weight, bias, residual = operands(1, 6, 7, 8, 3)
    for change, error, told in (
        ({"weight": weight.double()}, TypeError, "weight must be torch.float32 like x"),
        ({"weight": weight[:7]}, ValueError, r"weight must be \[C, 1, k, k\] = \[8, 1, 3, 3\]"),
        ({"weight": weight[..., :2, :2]}, ValueError, "weight must have an odd side k"),
        ({"bias": bias.double()}, TypeError, "bias must be torch.float32 like x"),
        ({"bias": bias[:7]}, ValueError, r"bias must be \[C\] = \[8\]"),
        ({"residual": residual.double()}, TypeError, "residual must be torch.float32 like x"),
        ({"residual": residual[..., :7]}, ValueError, r"residual must be \[B, rows, w, C\] = \[1, 6, 7, 8\]"),
        (
            {"first_row": 1},
            ValueError,
            "first_row must leave the 6 rows of residual inside the 6 of x, got 1",
        ),
        ({"first_row": -1}, ValueError, "first_row must be an integer >= 0"),
        ({"x": x[0]}, ValueError, r"x must be \[B, h, w, C\]"),
    ):
        given = {"x": x, "weight": weight, "bias": bias, "residual": residual, "first_row": 0, **change}
        for backend in ("cpu", "dense"):
            with pytest.raises(error, match=told):
                depthwise_gelu_add(**given, backend=backend)


def test_the_op_takes_any_strides():
    x, weight, bias, residual = operands(2, 6, 7, 8, 3)
    expected = depthwise_gelu_add(x, weight, bias, residual, 0, "cpu")
    x, weight, residual = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, weight, residual))
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    every_other = bias.repeat_interleave(2)[::2]
    assert torch.equal(depthwise_gelu_add(channels_first, weight, every_other, residual, 0, "cpu"), expected)


def test_the_op_has_no_gradient_and_says_so():
    x, weight, bias, residual = operands(1, 6, 7, 8, 3)
    made = depthwise_gelu_add(x.requires_grad_(), weight, bias, residual, 0, "cpu")
    with pytest.raises(NotImplementedError, match="no_grad"):
        made.sum().backward()
    depthwise_gelu_add(x, weight, bias, residual, 0, "dense").sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("backend", ["cpu", "cuda-emu"])
def test_the_op_makes_some_rows_of_a_batch_contiguous(backend):
    """cuda-emu has no kernel for it, so it takes what every backend without one takes."""
    x, weight, bias, residual = operands(3, 9, 7, 8, 3)
    if get(backend).available() is not None:
        pytest.skip("not built")
    given = (x, weight, bias, residual[:, 2:6], 2, backend)
    made = torch.ops.pft_bench.depthwise_gelu_add(*given)
    assert made.is_contiguous()
    torch.library.opcheck(torch.ops.pft_bench.depthwise_gelu_add.default, given)


def test_a_kernel_beyond_the_limit_is_computed_all_the_same():
    check(*operands(1, 20, 21, 8, 17))


def test_the_module_refuses_what_it_cannot_compute():
    p = torch.zeros(64).data_ptr()
    image = (p, (16, 8, 4, 1))
    with pytest.raises(RuntimeError, match=r"depthwise_gelu_add \[1, 2, 2, 4, 2, 0, 2\]"):  # an even kernel
        _cpu.depthwise_gelu_add(image, p, 0, image, image, (1, 2, 2, 4, 2, 0, 2), p, 256, 1)
    with pytest.raises(RuntimeError, match="too large"):
        _cpu.depthwise_gelu_add(image, p, 0, image, image, (1, 2, 2, 4, 17, 0, 2), p, 256, 1)
    with pytest.raises(RuntimeError, match="not acceptable"):  # rows beyond the image
        _cpu.depthwise_gelu_add(image, p, 0, image, image, (1, 2, 2, 4, 3, 1, 2), p, 256, 1)
    with pytest.raises(ValueError, match="residual is a null pointer"):
        _cpu.depthwise_gelu_add(image, p, 0, (0, image[1]), image, (1, 2, 2, 4, 3, 0, 2), p, 256, 1)
    with pytest.raises(ValueError, match="negative"):
        _cpu.depthwise_workspace_bytes((1, 2, -2, 4, 3, 0, 2), 1)
