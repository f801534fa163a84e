"""What everything is drawn on: matplotlib in a fixed style, saved as pixels or as SVG markup.

matplotlib is imported in here alone, and only when something is drawn. Colours are those of the style sheet in light;
in SVG they become its variables, so that a page has them light and dark. Equal drawings give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from ..common.drafts import draft
from ..common.text import plain, written_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure

    Canvas = Figure

PNG_DPI = 150
FONT = 12.0
"""Size of texts in pixels; the style sheet sets the same for SVG."""

Array = np.ndarray[Any, Any]


def style_sheet() -> str:
    """Colours, and what the figures need: the page has it, and every SVG file."""
    return (resources.files(__package__) / "chart.css").read_text(encoding="utf-8")


@cache
def palette() -> dict[str, str]:
    """The style sheet's names of colours, and their values in light."""
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style_sheet().split("@media")[0]))


@contextmanager
def style(salt: str = "") -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's settings are; ids in SVG are made from `salt`."""
    import matplotlib

    ink, soft, line = (palette()[name] for name in ("ink", "soft", "line"))
    ours = {
        "font.family": "DejaVu Sans", "font.size": FONT, "text.color": ink, "text.parse_math": False,
        "svg.fonttype": "none", "svg.hashsalt": f"pft_bench {salt}", "path.simplify": False, "axes.facecolor": "none",
        "axes.edgecolor": ink, "axes.axisbelow": True, "axes.grid": True, "grid.color": line,
        "axes.spines.left": False, "axes.spines.top": False, "axes.spines.right": False,
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.color": soft, "ytick.color": soft,
        "xtick.major.pad": 7, "ytick.major.pad": 8,
    }  # fmt: skip
    known: dict[Any, Any] = dict(matplotlib.rcParamsDefault) | dict(ours)
    with matplotlib.rc_context(
        {name: value for name, value in known.items() if not name.startswith("backend")}
    ):
        yield


def blank(width: float, height: float) -> Canvas:
    """An empty sheet of so many pixels, a 72nd of an inch each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(made)
    return made


def save(canvas: Canvas, path: Path) -> Path:
    """Write a drawing to a file of the kind that its name says."""
    with style(path.stem), draft(path) as made:
        _make_harmless(canvas)
        _write_out_what_fonts_lack(canvas)
        canvas.savefig(made, dpi=PNG_DPI, facecolor=palette()["paper"])
    return path


def _make_harmless(canvas: Canvas) -> None:
    """Texts hold names of files and plug-ins: what is no character to be seen is written out."""
    from matplotlib.text import Text

    for text in canvas.findobj(Text):
        text.set_text(plain(text.get_text(), lines=True))


def _write_out_what_fonts_lack(canvas: Canvas) -> None:
    """It would be a box, the same for every such character, and a warning of matplotlib's."""
    from matplotlib.text import Text

    for text in canvas.findobj(Text):
        found = text.get_text()
        if not found.isascii():
            text.set_text("".join(one if ord(one) in _drawable() else written_out(one) for one in found))


@cache
def _drawable() -> frozenset[int]:
    """The characters that DejaVu Sans has, in normal and in bold; the end of a line is none of a font's."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [
        get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
        for weight in ("normal", "bold")
    ]
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts)) | {ord("\n")}


@cache
def text_width(text: str, size: float = FONT, weight: str = "normal") -> float:
    """Pixels that a text takes in DejaVu Sans, which is wider than most that a browser may have."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def even_steps(low: float, high: float, most: int) -> list[float]:
    """Round values in low..high, equally far apart."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in found if low <= value <= high]


def outline(marker: str, size: float) -> list[tuple[float, float]]:
    """Corners of a mark around (0, 0), as it stands in the figures, y down."""
    from matplotlib.markers import MarkerStyle

    made = MarkerStyle(marker)
    corners = np.asarray(made.get_path().transformed(made.get_transform()).to_polygons()[0])
    return [(float(x) * size, -float(y) * size) for x, y in corners[:-1]]


def heat(value: Array) -> Array:
    """Colours [..., 3] of values in 0..1; the square root, since a few weights outweigh all others."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["inferno"](0.5 + 0.45 * np.sqrt(value)))[..., :3]


# -- SVG ---------------------------------------------------------------------------------------------------------------

Attributes = dict[str, str]


def vectors(canvas: Canvas, salt: str) -> str:
    """A drawing as matplotlib's SVG; `salt` makes its ids differ from those of other drawings in the same page."""
    out = io.StringIO()
    unwanted = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style(salt):
        _make_harmless(canvas)
        canvas.savefig(out, format="svg", transparent=True, metadata=unwanted)
    return out.getvalue()


def markup(text: str, links: Sequence[Attributes], without: Sequence[str] = (), **root: str) -> Markup:
    """matplotlib's SVG as an <svg> for a page: no scripts, nothing from outside, colours by the style sheet.

    Args:
        text: of a drawing, in which an artist with the url `#3` becomes a link with the attributes `links[3]`, titled
            by its `aria-label`.
        links: their attributes.
        without: what does not belong in it, by the artists' `gid`.
        root: attributes of the <svg> itself.
    """
    made = ElementTree.fromstring(text)
    for parent in list(made.iter()):
        for child in list(parent):
            if child.get("id") in without:
                parent.remove(child)
    for element in made.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = (element.text or "").strip() if element.tag != "text" else element.text
        element.tail = None
        element.attrib = _attributes(element)
    for parent in list(made.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style", "clipPath") or (
                child.tag in ("g", "defs") and not len(child)
            ):
                parent.remove(child)
    for element in made.iter("a"):
        element.attrib = dict(links[int(element.get("href", "")[1:])])
        title = ElementTree.Element("title")
        title.text = element.get("aria-label")
        for child in element:
            if child.get("style") in ("fill:none", "fill-opacity:0"):  # nobody sees it: it only takes clicks
                child.attrib = {name: value for name, value in child.attrib.items() if name != "style"} | {
                    "class": "hit"
                }
        element.insert(0, title)
    made.attrib = root
    return Markup(ElementTree.tostring(made, encoding="unicode"))


def _attributes(element: ElementTree.Element) -> Attributes:
    """Attributes as a page has them: no namespaces, no ids of groups, two digits, the style sheet's colours."""
    kept = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for name in ("clip-path", "target", *(["id"] if element.tag == "g" else [])):
        kept.pop(name, None)
    if re.match(r"rotate\(-?0 ", kept.get("transform", "")):
        del kept["transform"]
    for name in {"d", "x", "y", "transform", "viewBox"} & set(kept):
        text = re.sub(
            r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), kept[name]
        )
        kept[name] = re.sub(r"\s*([MLQCz])\s*", r"\1", text).strip() if name == "d" else text
    if "style" in kept:
        kept["style"] = _css(kept["style"])
        if not kept["style"]:
            del kept["style"]
    return kept


def _css(text: str) -> str:
    """Declarations without the font, which the page sets, and with variables for colours."""
    names = {value: name for name, value in palette().items()}
    found = []
    for declaration in filter(None, text.split("; ")):
        name, _, value = declaration.partition(": ")
        if name in ("font-family", "stroke-linejoin") or (name, value) in (
            ("font-size", "12px"),
            ("text-anchor", "start"),
        ):
            continue
        found.append(f"{name}:{f'var(--{names[value]})' if value in names else value}")
    return ";".join(found)
