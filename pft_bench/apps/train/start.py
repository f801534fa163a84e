"""Where training starts from, other than random weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...model import PFT, read_weights, weights_file


def start_from(model: PFT, path: Path) -> None:
    """Take all weights of `path` that have the name and shape of the model's: x4 from x2 keeps all but the upsampler.

    Raises ValueError where a layer's weights are not among them, or one is not finite.
    """
    weights, own = read_weights(weights_file(path, "--init")), model.state_dict()
    fitting = {
        name: value for name, value in weights.items() if name in own and value.shape == own[name].shape
    }
    missing = [name for name in own if name not in fitting and name.startswith(("layers.", "conv_first."))]
    if missing:
        raise ValueError(
            f"--init must be weights of the same body, but {path} lacks {', '.join(missing[:3])}"
        )
    spoilt = [name for name, value in fitting.items() if not value.isfinite().all()]
    if spoilt:
        raise ValueError(
            f"--init must be weights that are finite, but {path} has NaN or infinity in {', '.join(spoilt[:3])}"
        )
    model.load_state_dict(fitting, strict=False)


@torch.no_grad()
def start_as_interpolation(model: PFT) -> None:
    """Make a 'pixelshuffledirect' model enlarge by (three-tap) bicubic interpolation, which training then improves.

    The first channels of conv_first carry the image, the body adds nothing yet, and the upsampler's convolution
    interpolates. It spares a short run the thousand steps in which a random model learns to copy its input.
    """
    config = model.config
    if config.upsampler != "pixelshuffledirect" or config.embed_dim < config.in_chans:
        raise ValueError(
            f"--init interpolation needs upsampler 'pixelshuffledirect' and embed_dim >= in_chans, got "
            f"{config.upsampler!r} with embed_dim={config.embed_dim}"
        )
    scale, channels = config.upscale, range(config.in_chans)
    for part in (model.conv_first.weight, model.conv_first.bias):
        assert part is not None
        part[: config.in_chans] = 0
    for channel in channels:
        model.conv_first.weight[channel, channel, 1, 1] = 1
    for parameter in model.conv_after_body.parameters():
        parameter.zero_()
    upsample = cast(nn.Conv2d, cast(nn.Sequential, model.upsample)[0])
    for parameter in upsample.parameters():
        parameter.zero_()
    taps = [_taps((phase + 0.5) / scale - 0.5) for phase in range(scale)]
    for channel in channels:
        for y in range(scale):
            for x in range(scale):  # the order of PixelShuffle
                upsample.weight[(channel * scale + y) * scale + x, channel] = torch.outer(taps[y], taps[x])


def _taps(offset: float) -> Tensor:
    """Weights of the pixels -1, 0 and 1 at `offset`: the cubic kernel with a = -0.5, without its fourth tap."""
    distance = (torch.tensor([-1.0, 0.0, 1.0]) - offset).abs()
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance <= 1, near, far)
    return weights / weights.sum()
