"""The attention row of one pixel through all layers, against masked dense attention on the layer's own inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pft_bench import PFT
from pft_bench.apps.focus import MOST_TOKENS, focus_of, view_around
from pft_bench.backends import Layer
from pft_bench.model import generated_weights
from pft_bench.ops import observe_layers

SIZE = 4
CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "depths": (2, 4),
    "num_heads": 3,
    "num_topk": (16, 16, 7, 7, 3, 3),
    "window_size": SIZE,
    "convffn_kernel_size": 3,
    "mlp_ratio": 2,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}


@pytest.fixture(scope="module")
def model() -> PFT:
    model = PFT(**CONFIG, backend="reference").eval()
    model.load_state_dict(generated_weights(model))
    return model


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("query", [(0, 0), (5, 6), (9, 10), (3, 4)])
def test_what_is_kept(model: PFT, query: tuple[int, int]) -> None:
    """10x11 pixels are padded to 12x12: positions, shifted windows and padding must all be told apart."""
    layers = focus_of(model, image(10, 11), query)
    assert [(layer.candidates, layer.keeps) for layer in layers] == [
        (16, 16),
        (16, 16),
        (16, 7),
        (16, 7),
        (7, 3),
        (7, 3),
    ]
    assert [layer.block for layer in layers] == [0, 0, 1, 1, 1, 1]
    assert [layer.shifted for layer in layers] == [False, True] * 3
    for layer in layers:
        assert layer.weights.shape == layer.kept.shape == (3, 10, 11)
        shift = SIZE // 2 if layer.shifted else 0
        y, x = ((place - shift) // SIZE * SIZE + shift for place in query)
        window = torch.zeros(10, 11, dtype=torch.bool)
        window[max(y, 0) : y + SIZE, max(x, 0) : x + SIZE] = True
        assert torch.equal(layer.visible, window)
        assert not (layer.weights[:, ~window] > 1e-30).any()  # what is masked has a weight of exp(-100)
        assert not layer.weights[~layer.kept].any()
        # a kept token may be padding, which is in no picture
        assert bool((layer.kept.sum((1, 2)) <= layer.keeps).all())
        assert bool((layer.weights.sum((1, 2)) <= 1 + 1e-9).all())
    for later, earlier in ((2, 0), (3, 1), (4, 2), (5, 3)):
        assert not (layers[later].kept & ~layers[earlier].kept).any()


def test_the_weights_are_those_of_the_next_layers_state(model: PFT) -> None:
    """What a layer hands on (kept index and logits) is computed by the kernels: the same row must be in it."""
    query, x = (5, 6), image(12, 12)
    seen: list[tuple[Tensor, Tensor] | None] = []

    def keep(given: Layer) -> None:
        seen.append(None if given.index is None or given.logits is None else (given.index, given.logits))

    with torch.no_grad(), observe_layers(keep):
        model(x)
    layers = focus_of(model, x, query)
    for earlier, later in ((2, 4), (3, 5)):
        handed = seen[later]
        assert handed is not None
        shift = SIZE // 2 if layers[earlier].shifted else 0
        window = (query[0] - shift) // SIZE * 3 + (query[1] - shift) // SIZE
        token = (query[0] - shift) % SIZE * SIZE + (query[1] - shift) % SIZE
        places = handed[0][window, :, token].long()
        rows = (query[0] - shift) // SIZE * SIZE + shift + places // SIZE
        columns = (query[1] - shift) // SIZE * SIZE + shift + places % SIZE
        head = torch.arange(3).unsqueeze(1)
        assert layers[earlier].kept[head, rows, columns].all()
        weights = layers[earlier].weights[head, rows, columns]
        expected = handed[1][window, :, token].double().exp()  # relative to the largest
        assert torch.allclose(weights / weights.amax(1, keepdim=True), expected, rtol=1e-4)


def test_views_are_whole_windows() -> None:
    whole = view_around((3, 4), (100, 120), 32)
    assert (whole.top, whole.left, whole.bottom, whole.right) == (0, 0, 100, 120)
    for query in ((0, 0), (499, 699), (250, 333)):
        view = view_around(query, (500, 700), 32)
        assert view.top <= query[0] < view.bottom
        assert view.left <= query[1] < view.right
        assert view.top % 32 == view.left % 32 == 0
        assert (view.bottom - view.top) * (view.right - view.left) <= MOST_TOKENS
    strip = view_around((1, 5000), (2, 9000), 32)
    assert (strip.top, strip.bottom) == (0, 2)
    assert strip.left <= 5000 < strip.right


def test_what_cannot_be_followed(model: PFT) -> None:
    with pytest.raises(ValueError, match="query must lie in the image"):
        focus_of(model, image(8, 8), (8, 0))
    with pytest.raises(ValueError, match="at most 16384 pixels"):
        focus_of(model, torch.zeros(1, 3, 129, 128), (0, 0))
