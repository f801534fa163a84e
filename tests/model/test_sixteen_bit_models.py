"""Models in bfloat16 and float16 on a CPU: what they cost in quality, and how images enter and leave them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

import pft_bench
from pft_bench.apps.images.resize import imresize
from pft_bench.apps.quality.metrics import psnr_y
from pft_bench.model import image_dtype

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SHIFT_DB = 0.02
"""PSNR on Y that 16 bits may cost."""


def levels(image: Tensor) -> Tensor:
    """[h, w, 3] uint8 of [1, 3, h, w] in 0..1, as it is written into a file."""
    return (image[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


@DTYPES
@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_a_photograph_is_as_good_as_in_float32(name: str, dtype: torch.dtype) -> None:
    high = np.ascontiguousarray(getattr(data, name)()[100:228, 120:248])
    low = torch.from_numpy(imresize(high, (64, 64), 0.5)).permute(2, 0, 1)[None].float() / 255
    found = []
    for kind in (torch.float32, dtype):
        with torch.no_grad():
            out = pft_bench.load("small_x2", dtype=kind)(low)
        assert out.dtype == torch.float32
        found.append(psnr_y(levels(out), torch.from_numpy(high), 2))
    assert abs(found[1] - found[0]) <= SHIFT_DB, found


@DTYPES
def test_the_golden_outputs_are_as_near_to_their_targets_as_in_float32(golden, dtype: torch.dtype) -> None:
    """The output of generated weights is no photograph, so it is clamped as one is, and held against the target."""
    target = golden.arrays["target"]
    found = []
    for kind in (torch.float32, dtype):
        model = golden.model(kind, "cpu").eval()
        with torch.no_grad():
            out = model(golden.arrays["input"])
        found.append(
            [psnr_y(levels(one[None]), levels(two[None]), 2) for one, two in zip(out, target, strict=True)]
        )
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) <= SHIFT_DB, found


@DTYPES
def test_an_image_in_float32_is_not_rounded_on_its_way(make_model, image, dtype: torch.dtype) -> None:
    """A white image of bfloat16 has neighbours a grey level apart; what enters and leaves in float32 has not."""
    model, x = make_model(dtype, backend="cpu"), image()
    with torch.no_grad():
        out, rounded = model(x), model(x.to(dtype))
    assert (out.dtype, rounded.dtype) == (torch.float32, dtype)
    assert not torch.equal(out, out.to(dtype).float())
    assert float((out - rounded.float()).abs().max()) < 0.1


def test_which_images_a_model_takes(make_model, image) -> None:
    assert [image_dtype(kind) for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [
        *(torch.float32, torch.float32, torch.float32, torch.float64)
    ]
    told = r"x must have the dtype of the weights, torch.bfloat16 or torch.float32, got torch.float16"
    with pytest.raises(ValueError, match=told):
        make_model(torch.bfloat16)(image().half())
    with pytest.raises(ValueError, match=r"weights, torch.float64, got torch.float32"):
        make_model(torch.float64)(image())


@DTYPES
def test_the_ordinary_way_gives_nearly_the_same_and_has_gradients(
    make_model, image, dtype: torch.dtype
) -> None:
    model, x = make_model(dtype, backend="cpu"), image()
    with torch.no_grad():
        quick = model(x)
    made = model(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, quick, rtol=0.0, atol=0.05)
    made.square().mean().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_load_makes_the_weights_of_the_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert {p.dtype for p in pft_bench.load("small_x2", dtype=dtype).parameters()} == {dtype}
    told = r"dtype must be one of torch.float16, torch.bfloat16, torch.float32, torch.float64, got 'bfloat16'"
    with pytest.raises(TypeError, match=told):
        pft_bench.load("small_x2", dtype="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got torch\.int8"):
        pft_bench.load("small_x2", dtype=torch.int8)
