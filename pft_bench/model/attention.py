"""One PFT layer: progressive attention in windows, LePE, and the feed-forward part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.stages import part, stage
from ..ops import ChainState
from .config import PFTConfig
from .layers import ConvFFN, DepthwiseConv, from_windows, to_windows
from .variants import VARIANTS, VariantInputs


class WindowAttention(nn.Module):
    """Attention of one layer over windows; the projection after it belongs to it in published state dicts."""

    def __init__(self, config: PFTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attend = VARIANTS[config.attention]
        table = torch.zeros((2 * config.window_size - 1) ** 2, config.bias_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self, qkv: Tensor, state: ChainState | None, region: Tensor | None, topk: int, backend: str
    ) -> tuple[Tensor, ChainState]:
        """Attend: `qkv` [W, N, 3*C] to ([W, N, C] before `proj`, the chain's next state)."""
        windows, tokens, width = qkv.shape
        heads, channels = self.num_heads, width // 3
        q, k, v = qkv.view(windows, tokens, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table.expand(-1, heads)
        out, state = self.attend(VariantInputs(q, k, v, bias, region, state, topk, backend))
        return out.transpose(1, 2).reshape(windows, tokens, channels), state


class PFTLayer(nn.Module):
    """x + proj(attention + LePE), then x + ConvFFN: one transformer layer on [B, h, w, C].

    `chain` is 0 for unshifted and 1 for shifted windows, `topk` the entries of a row that the layer keeps.
    """

    def __init__(self, config: PFTConfig, chain: int, topk: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.window_size = config.window_size
        self.chain = chain
        self.shift = config.window_size // 2 if chain else 0
        self.topk = topk
        self.norm1 = config.norm_layer(dim)
        self.norm2 = config.norm_layer(dim)
        self.wqkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.v_LePE = DepthwiseConv(dim, config.convffn_kernel_size)
        self.attn_win = WindowAttention(config)
        self.convffn = ConvFFN(dim, config.hidden_dim, config.convffn_kernel_size)

    def forward(
        self, x: Tensor, state: ChainState | None, region: Tensor | None, backend: str
    ) -> tuple[Tensor, ChainState]:
        """Return (x, state) after the layer; `region` is used by shifted layers only."""
        with part(self):
            mixed, state = self._mix(x, state, region if self.chain else None, backend)
            x = x + mixed
            del mixed
            with stage("norm"):
                y = self.norm2(x)
            with stage("ffn"):
                return x + self.convffn(y), state

    def _mix(
        self, x: Tensor, state: ChainState | None, region: Tensor | None, backend: str
    ) -> tuple[Tensor, ChainState]:
        height, width = x.shape[1:3]
        # The norm and the projection act on single tokens: cutting windows before them moves C channels, not 3*C.
        with stage("norm"):
            x = self.norm1(x)
        with stage("window"):
            windows = to_windows(x, self.window_size, self.shift)
        del x
        with stage("projection"):
            qkv = self.wqkv(windows)
        del windows
        attended, state = self.attn_win(qkv, state, region, self.topk, backend)
        with stage("window"):
            attended = from_windows(attended, self.window_size, height, width, self.shift)
            v = from_windows(qkv.chunk(3, dim=-1)[2], self.window_size, height, width, self.shift)
        del qkv
        with stage("lepe"):
            mixed = self.v_LePE(v)
            # In place: nothing keeps this output (see ConvFFN), and the attention's own output is kept.
            mixed += attended
        del v, attended
        with stage("projection"):
            return self.attn_win.proj(mixed), state

    def extra_repr(self) -> str:
        """Show what the parameters do not."""
        return f"shift={self.shift}, topk={self.topk}"
