"""DRSformer's mixture of experts: convolutions of eight kinds, weighed by what the image's mean features ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = (1, 3, 5, 7)
DILATED = (3, 5, 7)
EXPERTS = len(SIZES) + len(DILATED) + 1


class Separable(nn.Module):
    """Depthwise and pointwise convolutions: two pairs, or one dilated pair."""

    def __init__(self, dim: int, size: int, dilated: bool) -> None:
        super().__init__()

        def pair(step: int) -> list[nn.Module]:
            pad = step * (size // 2)
            depthwise = nn.Conv2d(dim, dim, size, padding=pad, dilation=step, groups=dim, bias=False)
            return [depthwise, nn.Conv2d(dim, dim, 1, bias=False)]

        self.op = nn.Sequential(*(pair(2) if dilated else [*pair(1), nn.ReLU(), *pair(1)]))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        y: Tensor = self.op(x)
        return y


class ExpertStep(nn.Module):
    """All experts side by side, weighed, then joined by a pointwise convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        plain = [Separable(dim, size, dilated=False) for size in SIZES]
        dilated = [Separable(dim, size, dilated=True) for size in DILATED]
        pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self._ops = nn.ModuleList([*plain, *dilated, pool])
        self._out = nn.Sequential(nn.Conv2d(EXPERTS * dim, dim, 1, bias=False), nn.ReLU())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself; `weights` [B, EXPERTS]."""
        made = [op(x) * weights[:, i, None, None, None] for i, op in enumerate(self._ops)]
        y: Tensor = self._out(torch.cat(made, 1))
        return y


class Steps(nn.Module):
    """A pointwise convolution and the steps, each added to its input."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.preprocess = nn.Module()
        self.preprocess.op = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.ReLU())
        self._ops = nn.ModuleList(ExpertStep(dim) for _ in range(steps))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself; `weights` [B, steps, EXPERTS]."""
        x = self.preprocess.op(x)  # type: ignore[operator]
        for number, step in enumerate(self._ops):
            x = (step(x, weights[:, number]) + x).relu()
        return x


class Gate(nn.Module):
    """The experts' weights in each step, from the mean of every channel."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        count = steps * EXPERTS
        self.steps = steps
        self.ca_fc = nn.Sequential(nn.Linear(dim, 2 * count), nn.ReLU(), nn.Linear(2 * count, count))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the experts for [B, C, h, w]: [B, steps, EXPERTS], 1 in the sum of each step."""
        found: Tensor = self.ca_fc(x.mean((2, 3))).view(-1, self.steps, EXPERTS)
        return found.softmax(-1)


class Experts(nn.Module):
    """The gate and the steps that it weighs."""

    def __init__(self, dim: int, steps: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Gate(dim, steps), Steps(dim, steps)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to itself."""
        gate, steps = self.layers
        y: Tensor = steps(x, gate(x))
        return y
