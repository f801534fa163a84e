"""Equal figures are drawn once for all tests of the report: most of them render the same few records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from pft_bench.report import draw as module
from pft_bench.report.series import Figure

plain = module.draw


@pytest.fixture(scope="session")
def draw_anew() -> Callable[..., module.Drawing]:
    """What draws, without the memory below."""
    return plain


known: dict[str, module.Drawing] = {}


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    def draw(figure: Figure, names: Sequence[str], width: float = module.WIDE) -> module.Drawing:
        told = replace(figure, x_text=str, y_text=str), [figure.words(point) for point in figure.points]
        key = repr((told, list(names), width))
        if key not in known:
            known[key] = plain(figure, names, width)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw", draw)
        yield
