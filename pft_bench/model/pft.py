"""The Progressive Focused Transformer (CVPR 2025, arXiv 2503.20337), with the published state-dict keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backends import get as get_backend
from ..common.stages import part, stage
from ..ops import ChainState
from .attention import PFTLayer
from .block import Block
from .config import PFTConfig
from .layers import block_convolution, crop, mirror_pad, region_map, relative_position_index
from .stock import may_infer
from .strips import Chain, strips
from .upsamplers import add_upsampler, reconstruct

# The mean of DIV2K, which the published model subtracts from three-channel images.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


def _mean(channels: int) -> tuple[float, ...]:
    return RGB_MEAN if channels == 3 else (0.0,)


def image_dtype(weights: torch.dtype) -> torch.dtype:
    """In which dtype a model with such weights is best given images: one of 16 bits in float32."""
    return torch.promote_types(weights, torch.float32)


class PatchEmbed(nn.Module):
    """The norm on the tokens of conv_first, where the model has one."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, h, w, C] to itself."""
        if self.norm is not None:
            x = self.norm(x)
        return x


class PFT(nn.Module):
    """PFT with the published constructor's keywords; see `PFTConfig` for each.

    Keywords that the published constructor would ignore are ignored, and listed in `config.ignored`. `backend` names
    the kernels that compute the attention ("auto": the fastest available for the tensors' device) and may be set to
    another at any time. Raises ValueError or TypeError for keywords that cannot make a model.
    """

    mean: Tensor

    def __init__(self, *, backend: str = "auto", **keywords: Any) -> None:
        super().__init__()
        config = PFTConfig.from_keywords(**keywords)
        self.config = config
        self.backend = backend
        self.register_buffer("relative_position_index_SA", relative_position_index(config.window_size))
        mean = torch.tensor(_mean(config.in_chans)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(config.in_chans, config.embed_dim, 3, padding=1)
        self.patch_embed = PatchEmbed(config.norm_layer(config.embed_dim) if config.patch_norm else None)
        if config.ape:
            height, width = (side // config.patch_size for side in config.img_hw)
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, height * width, config.embed_dim))
        made = iter([PFTLayer(config, c, k) for c, k in zip(config.chains, config.num_topk, strict=True)])
        self.layers = nn.ModuleList(Block(config, [next(made) for _ in range(n)]) for n in config.depths)
        self.norm = config.norm_layer(config.embed_dim)
        self.conv_after_body = block_convolution(config.embed_dim, config.resi_connection)
        add_upsampler(self, config)
        self._initialise()

    @classmethod
    def from_config(cls, config: PFTConfig, backend: str = "auto") -> PFT:
        """Make the model of a `PFTConfig`."""
        keywords = {
            name: getattr(config, name) for name in PFTConfig.__dataclass_fields__ if name != "ignored"
        }
        return cls(backend=backend, **keywords)

    @property
    def backend(self) -> str:
        """Name of the kernels that compute the attention."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"backend must be a string, got {name!r}")
        if name != "auto":
            get_backend(
                name
            )  # raises where no backend has this name; whether it can run is asked at the call
        self._backend = name

    @property
    def num_topk(self) -> tuple[int, ...]:
        """Kept entries of each layer, over all blocks. Setting it changes the schedule; no weight depends on it."""
        return self.config.num_topk

    @num_topk.setter
    def num_topk(self, schedule: Iterable[int]) -> None:
        self.config = self.config.with_topk(schedule)
        for layer, topk in zip(self.transformer_layers(), self.config.num_topk, strict=True):
            layer.topk = topk

    def transformer_layers(self) -> list[PFTLayer]:
        """All layers in the order of `num_topk`."""
        return [layer for block in self.layers for layer in cast(Block, block).residual_group]

    def forward(self, x: Tensor) -> Tensor:
        """Restore [B, in_chans, h, w] in 0..1 to [B, in_chans, h*scale, w*scale] (scale 1 for upsampler "").

        The result has the dtype of `x`: that of the weights, or float32 for weights of 16 bits. Between 0.5 and 1 two
        neighbours of bfloat16 are a grey level of 256 apart, so that an image of 16 bits costs more than a model of 16.
        """
        self._check_input(x)
        height, width = x.shape[2:]
        mean, given = self.mean, x.dtype
        wider = given != mean.dtype and not torch.is_autocast_enabled(x.device.type)
        if wider:
            mean = x.new_tensor(_mean(self.config.in_chans)).view(1, -1, 1, 1)
        x = (mirror_pad(x, self.config.window_size) - mean) * self.config.img_range
        with stage("conv"):
            first = self.conv_first(x.to(self.mean.dtype) if wider else x)
        features = self._body(first.permute(0, 2, 3, 1).contiguous())
        with stage("conv"):
            # Plain [B, C, h, w] from here on: oneDNN's channels-last convolutions have twice the rounding error, and
            # what these few make goes to the image directly.
            features = features.permute(0, 3, 1, 2).contiguous()
            features = self.conv_after_body(features) + first
            del first
            x = reconstruct(self, self.config.upsampler, features, x)
        if wider:
            x = x.to(given)
        x = x / self.config.img_range + mean
        scale = self.config.output_scale
        return crop(x, height * scale, width * scale)

    def _body(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window_size = self.config.window_size
        with stage("norm"):
            x = self.patch_embed(x)
        if self.config.ape:
            x = x + self._position_embedding(height, width)
        region = None
        if max(self.config.chains):
            with stage("window"):
                region = region_map(height, width, window_size, window_size // 2, x.device)
        if not may_infer(self.layers, x):
            chains: list[ChainState | None] = [None, None]
            for block in self.layers:
                with part(block):
                    x = block(x, chains, region, self._backend)
        else:
            cuts = strips(x.shape[0], height, width, window_size)
            cut_chains: list[Chain] = [[None] * len(cuts), [None] * len(cuts)]
            for block in self.layers:
                with part(block):
                    x = cast(Block, block).infer(x, cut_chains, region, self._backend, cuts)
            del cut_chains
        with stage("norm"):
            out: Tensor = self.norm(x)
            return out

    def _position_embedding(self, height: int, width: int) -> Tensor:
        trained = tuple(side // self.config.patch_size for side in self.config.img_hw)
        if (height, width) != trained:
            raise ValueError(
                f"x must have the size that absolute position embeddings were made for, {trained} after padding to "
                f"windows, got {(height, width)}"
            )
        return cast(Tensor, self.absolute_pos_embed).view(1, height, width, -1)

    def _check_input(self, x: Tensor) -> None:
        channels, weight = self.config.in_chans, self.conv_first.weight
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != channels or min(x.shape[2:]) < 1:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be [B, {channels}, h, w] with h, w >= 1, got {got}")
        if x.device != weight.device:
            raise ValueError(f"x must be on the device of the weights, {weight.device}, got {x.device}")
        allowed = dict.fromkeys((weight.dtype, image_dtype(weight.dtype)))
        if x.dtype not in allowed and not torch.is_autocast_enabled(x.device.type):
            words = " or ".join(map(str, allowed))
            raise ValueError(f"x must have the dtype of the weights, {words}, got {x.dtype}")

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.ape:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
