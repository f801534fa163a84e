"""A block of PFT: some layers and a convolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common.stages import part, stage
from ..ops import ChainState
from .attention import PFTLayer
from .config import PFTConfig
from .layers import block_convolution, convolve
from .strips import Chain, Strip, infer_layer


class ResidualGroup(nn.Module):
    """The layers of a block: a level that the published keys have, layers.B.residual_group.layers.L.*."""

    def __init__(self, layers: Iterable[PFTLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[PFTLayer]:
        return cast(Iterator[PFTLayer], iter(self.layers))


class Block(nn.Module):
    """Some layers, a convolution, and the block's input added to its result."""

    def __init__(self, config: PFTConfig, layers: Iterable[PFTLayer]) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(layers)
        self.conv = block_convolution(config.embed_dim, config.resi_connection)
        self.use_checkpoint = config.use_checkpoint

    def forward(
        self, x: Tensor, chains: list[ChainState | None], region: Tensor | None, backend: str
    ) -> Tensor:
        """Map [B, h, w, C] to itself; `chains` (unshifted, shifted) is read and updated in place."""
        block_input = x
        for layer in self.residual_group:
            # Taken out of the list, so that the old state can be freed as soon as the layer has used it.
            state, chains[layer.chain] = chains[layer.chain], None
            if self.use_checkpoint and torch.is_grad_enabled():
                x, state = checkpoint(
                    layer, x, state, region, backend, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, state = layer(x, state, region, backend)
            chains[layer.chain] = state
            del state
        with stage("conv"):
            return convolve(self.conv, x) + block_input

    def infer(
        self, x: Tensor, chains: Sequence[Chain], region: Tensor | None, backend: str, cuts: Sequence[Strip]
    ) -> Tensor:
        """The same without gradients, strip by strip; `chains` holds one state for each strip."""
        block_input = x
        for layer in self.residual_group:
            with part(layer):
                x = infer_layer(layer, x, chains[layer.chain], region if layer.chain else None, backend, cuts)
        with stage("conv"):
            x = convolve(self.conv, x)
            x += block_input
            return x
