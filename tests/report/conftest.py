"""Equal figures are drawn once for all tests of the report: most of them render the same few records. A module that has
a `whole` folder changes copies of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

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


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the module's folder, pictures apart."""
    for path in whole.iterdir():
        if path.suffix != ".png":
            shutil.copy(path, tmp_path)
    return tmp_path
