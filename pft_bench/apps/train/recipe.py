"""What a training run does, apart from its model and its pictures: the published recipe, at any length."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRECISIONS = ("float32", "bfloat16", "float16")
PUBLISHED_ITERATIONS = 500_000
# Shares of the published 500k iterations: 20k of warm-up; halved at 250k, 400k, 450k, 475k and 490k.
_WARMUP = 0.04
_MILESTONES = (0.5, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Recipe:
    """L1 loss and AdamW with a warm-up and a stepwise decay; moving average of the weights.

    `batch` is the global batch over all processes, `patch` the side of a crop in low-resolution pixels. Warm-up and
    milestones are counted in iterations. Raises ValueError for what cannot be trained.
    """

    iterations: int = PUBLISHED_ITERATIONS
    batch: int = 32
    patch: int = 64
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 20_000
    milestones: tuple[int, ...] = (250_000, 400_000, 450_000, 475_000, 490_000)
    gamma: float = 0.5
    ema_decay: float = 0.999
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.warmup < 0 or list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"warmup must be at least 0 and milestones must rise, got {self.warmup} and {self.milestones}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")

    @classmethod
    def published(cls, *, light: bool, iterations: int = PUBLISHED_ITERATIONS, **others: object) -> Recipe:
        """The published recipe, its warm-up and milestones at the same shares of `iterations`."""
        return cls(
            iterations=iterations,
            warmup=round(_WARMUP * iterations),
            milestones=tuple(round(share * iterations) for share in _MILESTONES),
            **({"learning_rate": 5e-4 if light else 2e-4} | others),  # type: ignore[arg-type]
        )

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0: linear warm-up, then a factor `gamma` a milestone."""
        decayed = self.learning_rate * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return decayed * min(1.0, (step + 1) / self.warmup) if self.warmup else decayed
