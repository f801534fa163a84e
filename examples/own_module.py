"""Progressive attention inside a module of your own, trained for a few steps.

    python examples/own_module.py [STEPS]

Two layers form a chain: the first looks at all tokens and keeps 16 of them for each query, the second computes only
those. The task: each token of a window must find the one other token that carries the same label, and copy its value.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import pft_bench

SIDE, HEADS, DIM = 8, 2, 16
TOKENS, WIDTH = SIDE * SIDE, HEADS * DIM


class Attention(nn.Module):
    """One layer on windows of SIDE x SIDE tokens, [W, N, C] -> [W, N, C], keeping `topk` keys for each query."""

    def __init__(self, topk: int) -> None:
        super().__init__()
        self.topk = topk
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.zeros((2 * SIDE - 1) ** 2, HEADS))

    def forward(self, x: Tensor, state: pft_bench.ChainState | None) -> tuple[Tensor, pft_bench.ChainState]:
        """The layer's output, and what it hands to the next layer of the chain."""
        windows = len(x)
        q, k, v = self.qkv(x).view(windows, TOKENS, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)  # [W, H, N, D] each
        out, state = pft_bench.progressive_attention(q, k, v, topk=self.topk, bias=self.bias, state=state)
        return x + self.out(out.transpose(1, 2).reshape(windows, TOKENS, WIDTH)), state


class Finder(nn.Module):
    """Labels and values in, the value of the token with the same label out."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(TOKENS // 2, WIDTH)
        self.value = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList([Attention(topk=16), Attention(topk=8)])
        self.read = nn.Linear(WIDTH, 1)

    def forward(self, labels: Tensor, values: Tensor) -> Tensor:
        """labels [W, N], values [W, N] -> [W, N]."""
        x, state = self.label(labels) + self.value(values[..., None]), None
        for layer in self.layers:
            x, state = layer(x, state)
        return self.read(x)[..., 0]


def batch(windows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of tokens with one label, a value for each, and for each the value of the other of its pair."""
    order = torch.rand(windows, TOKENS, generator=generator).argsort(-1)
    values = torch.randn(windows, TOKENS, generator=generator)
    pairs = order.view(windows, TOKENS // 2, 2)
    labels = torch.empty_like(order).scatter_(1, order, torch.arange(TOKENS).expand(windows, -1) // 2)
    partner = torch.empty_like(order).scatter_(1, order, pairs.flip(-1).flatten(1))
    return labels, values, values.gather(1, partner)


def main(steps: int = 200) -> list[float]:
    """Train, print the loss now and then, return all losses."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Finder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        labels, values, wanted = batch(16, generator)
        loss = nn.functional.mse_loss(model(labels, values), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
