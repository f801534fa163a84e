"""One image through one method: a row with its PSNR and SSIM, or with the reason why it has none."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...harness.record import RecordError, seal
from ..images import imresize
from .datasets import ImagePair, load_noted
from .metrics import psnr_y, ssim_y

Array = np.ndarray[Any, Any]

SCHEMA = "pft_bench.quality/1"
BICUBIC = "bicubic"
QUALITY = "quality.jsonl"
"""The file's name, beside the records."""


@dataclass(frozen=True)
class Variant:
    """What restores: a schedule, as it was written, on a backend; `Variant.bicubic` is the baseline of the field."""

    schedule: str
    backend: str

    @classmethod
    def bicubic(cls) -> Self:
        """Bicubic enlargement, without a model."""
        return cls(BICUBIC, "")

    @property
    def name(self) -> str:
        """The name in tables and of the contender that is timed."""
        return f"{self.schedule} {self.backend}".strip()


@dataclass(frozen=True)
class QualityRow:
    """The quality of one restored image.

    `low_made` tells that the low-resolution image was made here by bicubic reduction, `seconds` is one forward, not a
    measurement of latency. With a `reason` there are no metrics.
    """

    dataset: str
    image: str
    scale: int
    schedule: str
    backend: str
    weights: str
    device: str
    dtype: str
    low_height: int = 0
    low_width: int = 0
    low_made: bool = False
    psnr_db: float = math.nan
    ssim: float = math.nan
    seconds: float = math.nan
    reason: str | None = None

    def __post_init__(self) -> None:
        measured = not math.isnan(self.psnr_db) and math.isfinite(self.ssim) and math.isfinite(self.seconds)
        if measured == (self.reason is not None):
            raise ValueError(f"a row has either metrics or a reason, got {self.psnr_db}, {self.reason!r}")

    @property
    def variant(self) -> Variant:
        """What restored it."""
        return Variant(self.schedule, self.backend)

    def to_json(self) -> str:
        """One line, its seal last. JSON lacks infinity, the PSNR of equal images: it is written as null."""
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        values = {"schema": SCHEMA, **values}
        return json.dumps({**values, "seal": seal(values)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The row of a line; ValueError for any other line. Older versions wrote no seal."""
        values = json.loads(line)
        sealed = values.pop("seal", None)
        if sealed not in (None, fresh := seal(values)):
            raise ValueError(
                f"the line was changed after it was written: its seal is {sealed!r}, its content has {fresh!r}"
            )
        if values.pop("schema", None) != SCHEMA or set(values) != {field.name for field in fields(cls)}:
            raise ValueError(f"not a line of {SCHEMA!r}: {line[:80]}")
        empty = math.inf if values["reason"] is None else math.nan
        for key in ("psnr_db", "ssim", "seconds"):
            values[key] = empty if values[key] is None else values[key]
        return cls(**values)


def read_rows(path: Path) -> list[QualityRow]:
    """All rows of a file, its last line left out where it was cut short.

    Raises:
        RecordError: a line is no row, or not the one that its seal was made of; it is named by its number.
    """
    rows = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            rows.append(QualityRow.from_json(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{path.name}:{number}: {error}") from None
    return rows


def rows_to_go_on_with(path: Path) -> list[QualityRow]:
    """As `read_rows`, none without a file; a last line that was cut short goes, so that others can follow."""
    if not path.exists():
        return []
    rows = read_rows(path)
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return rows


@dataclass(frozen=True)
class Restored:
    """Where an image came from, what came out, and what was left out or converted while reading."""

    dataset: str
    pair: ImagePair
    scale: int
    low: Array
    high: Array
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, dataset: str, pair: ImagePair, scale: int) -> Self:
        """Read both images, or make the low-resolution one."""
        low, high, notes = load_noted(pair, scale)
        return cls(dataset, pair, scale, low, high, tuple(notes))

    def row(self, pixels: Array, seconds: float, **about: Any) -> QualityRow:
        """Compare with the original."""
        first, second = torch.from_numpy(pixels), torch.from_numpy(self.high)
        return QualityRow(
            dataset=self.dataset,
            image=self.pair.name,
            scale=self.scale,
            low_height=self.low.shape[0],
            low_width=self.low.shape[1],
            low_made=self.pair.low is None,
            psnr_db=psnr_y(first, second, self.scale),
            ssim=ssim_y(first, second, self.scale),
            seconds=seconds,
            **about,
        )


def bicubic_row(image: Restored, **about: Any) -> QualityRow:
    """The baseline of every table: the low-resolution image enlarged bicubically."""
    started = time.perf_counter()
    pixels = imresize(image.low, (image.high.shape[0], image.high.shape[1]), image.scale)
    return image.row(pixels, time.perf_counter() - started, schedule=BICUBIC, backend="", **about)


def model_row(
    image: Restored, restore: Callable[[Tensor], Tensor], channels: int = 3, **about: Any
) -> QualityRow:
    """One image through `restore`, which maps [1, channels, h, w] in 0..1; rounded to 8 bits before it is compared.

    A model of one channel restores the three planes one by one.
    """
    started = time.perf_counter()
    x = torch.from_numpy(image.low).permute(2, 0, 1).unsqueeze(0).float() / 255
    y = restore(x.transpose(0, 1) if channels == 1 else x).float().cpu()
    seconds = time.perf_counter() - started
    if not bool(y.isfinite().all()):
        raise ValueError("the model's output holds values that are not finite")
    y = y.transpose(0, 1) if channels == 1 else y
    pixels = (y[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return image.row(pixels.numpy(), seconds, **about)
