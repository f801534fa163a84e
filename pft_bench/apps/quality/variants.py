"""One image through every variant: a row for each, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...common.text import in_short
from .datasets import Dataset
from .evaluate import QualityRow, Restored, Variant, bicubic_row, model_row

Prepare = Callable[[], Callable[[Tensor], Tensor]]
"""Makes a variant ready: what comes back maps [1, channels, h, w] in 0..1 to its enlargement."""


def image_rows(
    dataset: Dataset,
    number: int,
    scale: int,
    channels: int,
    variants: Mapping[Variant, Prepare],
    known: Container[tuple[str, str, Variant]],
    about: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[QualityRow]:
    """The rows of image `number` of a test set that are not `known`: of bicubic enlargement, and of each variant.

    `about` are the fields that all rows share; `say` is told once what was converted or left out in reading.
    """
    pair = dataset.pairs[number]
    image: Restored | None = None
    failed = QualityRow(dataset.name, pair.name, scale, "", "", reason="not run", **about)
    for variant in (Variant.bicubic(), *variants):
        if (dataset.name, pair.name, variant) in known:
            continue
        named: dict[str, Any] = {"schedule": variant.schedule, "backend": variant.backend}
        try:
            if image is None:
                image = Restored.load(dataset.name, pair, scale)
                for note in image.notes:
                    say(f"{dataset.name}: {note}")
            if variant in variants:
                yield model_row(image, variants[variant](), channels, **named, **about)
            else:
                yield bicubic_row(image, **about)
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            yield replace(failed, **named, reason=in_short(error))
